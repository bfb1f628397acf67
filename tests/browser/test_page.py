"""The page as a person meets it: live, without a reload, in the system's Chromium."""

from __future__ import annotations

import json
import os
import threading
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from support import page as support
from support import scene
from support.mlxq_home import until

from mlxq.web.__main__ import BEHIND
from state import event, fleet, job, ledger, service, wakeup
from state.db import Database
from state.job import Claim, JobState


def test_a_died_engine_shows_its_backoff_and_its_recovery_without_a_reload(view: Page, rows: Database):
    card = view.locator("article[data-key=fast]")
    expect(card.locator(".state")).to_have_text("healthy")
    expect(view.locator(".overall strong")).to_have_text("healthy")
    scene.die(rows, "fast")
    expect(card.locator(".state strong")).to_have_text("crashed, restarting")
    expect(card.locator(".state time")).to_contain_text("in ")
    expect(card).to_contain_text("Killed by SIGKILL. (exit 1 of 5)")
    expect(view.locator(".overall")).to_contain_text("degraded")
    expect(view.locator("#why")).to_contain_text("fast Exited: Killed by SIGKILL.")
    scene.ready(rows, "fast")
    expect(card.locator(".state")).to_have_text("healthy")
    expect(view.locator(".overall strong")).to_have_text("healthy")
    assert view.title() == "not loaded again"


def test_a_pulls_bar_moves(view: Page, rows: Database):
    held = scene.pull(rows, 0.10)
    bar = view.locator("#jobs progress")
    expect(bar).to_have_attribute("value", "0.1000")
    for share in (0.35, 0.80):
        scene.advance(rows, held, share)
        expect(bar).to_have_attribute("value", f"{share:.4f}")
    expect(view.locator("#jobs .chain li")).to_have_count(3)
    ledger.succeed(rows, held, {})
    expect(bar).to_have_count(0)


def test_cancel_cancels(view: Page, rows: Database):
    held = scene.pull(rows)
    view.get_by_role("button", name=f"Cancel job {held.id + 1}").click()
    expect(view.locator("#said")).to_contain_text("cancelled")
    expect(view.locator(f"#jobs .chain li[data-key='{held.id + 1}']")).to_contain_text("cancelled")
    assert job.get(rows, held.id + 1).state is JobState.CANCELLED
    assert job.get(rows, held.id).state is JobState.RUNNING


def test_a_failed_job_tells_its_error_its_log_and_can_be_retried(view: Page, rows: Database, served: support.Running):
    number = scene.fail(rows)
    with served.home.log("worker").open("a") as log:
        said = {"job": number, "event": "job_failed", "error": "cut short <b>", "timestamp": "2026-01-01T10:00:00Z"}
        log.write(json.dumps(said) + "\n")
    failed = view.locator(f"#jobs li[data-key='{number}']")
    expect(failed).to_contain_text("The weights are truncated or damaged.")
    expect(failed.locator("code")).to_have_text("mlxq verify qwen3.5-4b")
    failed.locator("summary").click()
    expect(failed.locator("pre")).to_have_text("10:00:00  job_failed  error=cut short <b>")
    scene.pull(rows)
    expect(view.locator("#jobs .chain")).to_be_visible()
    expect(failed.locator("pre")).to_be_visible()
    view.get_by_role("button", name=f"Retry job {number}").click()
    expect(failed).to_contain_text("queued")
    assert job.get(rows, number).state is JobState.QUEUED


def test_stop_asks_first_and_restart_does_not(view: Page, rows: Database):
    view.get_by_role("button", name="Stop fast").click()
    expect(view.locator("dialog")).to_be_visible()
    view.get_by_role("button", name="Cancel").click()
    expect(view.locator("dialog")).to_be_hidden()
    assert rows.value("SELECT count(*) FROM jobs") == 0
    view.get_by_role("button", name="Stop fast").click()
    view.locator("dialog [data-sure]").click()
    expect(view.locator("#jobs")).to_contain_text("stop fast")
    view.get_by_role("button", name="Restart standard").click()
    expect(view.locator("#jobs")).to_contain_text("restart standard")
    asked = [(row["kind"], row["source"]) for row in rows.rows("SELECT kind, source FROM jobs ORDER BY id")]
    assert asked == [("stop", "person"), ("restart", "person")]


def test_focus_and_what_was_opened_survive_an_update(view: Page, rows: Database):
    """A screen reader's place must not be lost whenever a figure changes."""
    button = view.get_by_role("button", name="Restart longctx")
    button.focus()
    scene.die(rows, "fast")
    expect(view.locator("article[data-key=fast]")).to_contain_text("crashed, restarting")
    expect(button).to_be_focused()


def test_a_page_whose_process_is_gone_says_so(chromium: Browser, rows: Database):
    with support.running(rows.home) as own, support.opened(chromium, own) as view:
        own.process.kill()
        own.process.wait()
        expect(view.locator("#line")).to_contain_text("Not live since")


def test_what_others_wrote_is_text_and_never_markup(view: Page, rows: Database):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    service.apply(
        rows, "fast", service.ServiceEvent.EXITED, identity=None, cause=hostile, hint=hostile, exits=[rows.now()]
    )
    card = view.locator("article[data-key=fast]")
    expect(card).to_contain_text(hostile)
    assert view.locator("#tiers img, #why img, #tiers script").count() == 0


def test_the_keyboard_reaches_all_that_can_be_used_shows_where_it_is_and_leaves_again(view: Page):
    count = view.evaluate(
        """() => { const all = [...document.querySelectorAll('button, a[href], summary, [tabindex="0"]')];
            const inSight = all.filter(element => element.checkVisibility() && !element.closest('dialog'));
            inSight.forEach((element, number) => { element.number = number; });
            return inSight.length }"""
    )
    reached: list[int] = []
    for _ in range(count + 1):
        view.keyboard.press("Tab")
        number, outline = view.evaluate(
            "[document.activeElement.number, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if number is not None:
            assert outline == "solid", view.evaluate("document.activeElement.outerHTML")
            reached.append(number)
    assert sorted(set(reached)) == list(range(count))
    assert len(reached) <= count + 1


def test_a_service_has_a_page_with_its_log_live_and_filtered(view: Page, served: support.Running):
    log = served.home.log("fast")
    log.write_text("\x1b[32mloaded\x1b[0m weights\nready\n")
    view.get_by_role("link", name="fast", exact=True).click()
    lines = view.locator("#log div")
    expect(lines).to_have_text(["loaded weights", "ready"])
    expect(view.locator("#service")).to_contain_text("KV cache")
    view.get_by_label("Filter").fill("READ")
    with log.open("a") as file:
        file.write("a request was read <b>\nother\n")
    expect(view.locator("#log div:visible")).to_have_text(["ready", "a request was read <b>"])
    view.get_by_role("button", name="Day").click()
    expect(view.locator("[data-chart=ttft]")).to_have_attribute("data-step", "900")
    cells: dict[int, Literal["light", "dark"]] = {390: "light", 1440: "dark"}
    for width, scheme in cells.items():
        view.set_viewport_size({"width": width, "height": 900})
        view.emulate_media(color_scheme=scheme)
        report = Axe().run(view)
        assert report.violations_count == 0, report.generate_report()
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        if pictures := os.environ.get("PICTURES"):
            view.screenshot(path=f"{pictures}/service-{width}-{scheme}.png", full_page=True)


def test_a_chart_tells_its_values_to_pointer_and_keys_also_while_the_page_changes(view: Page, rows: Database):
    plot = view.locator("[data-chart=fast] .plot")
    value = view.locator("[data-chart=fast] .at")
    expect(value).to_have_text("peak 119")
    plot.focus()
    view.keyboard.press("Home")
    expect(plot).to_have_attribute("aria-valuenow", "0")
    expect(value).to_contain_text("tokens/s")
    told = value.text_content() or "none"
    scene.die(rows, "fast")
    expect(view.locator("article[data-key=fast]")).to_contain_text("crashed, restarting")
    expect(value).to_have_text(told)
    expect(plot).to_be_focused()
    expect(plot.locator(".cursor")).to_have_class("cursor on")
    view.keyboard.press("Tab")
    expect(value).to_have_text("peak 119")
    plot.hover()
    expect(value).to_contain_text("tokens/s")


def test_the_scale_of_a_chart_stands_beside_its_curve(view: Page):
    scale = view.locator("[data-chart=standard] .scale").bounding_box()
    plot = view.locator("[data-chart=standard] .plot").bounding_box()
    ticks = view.locator("[data-chart=standard] .ticks").bounding_box()
    assert scale
    assert plot
    assert ticks
    assert scale["x"] + scale["width"] <= plot["x"] + 0.5
    assert abs(ticks["x"] - plot["x"]) < 1


def test_a_batch_is_cancelled_where_it_is_told(view: Page, rows: Database):
    scene.batches_and_schedules(rows)
    view.get_by_role("button", name="Cancel batch").click()
    expect(view.locator("#said")).to_contain_text("cancelling")
    expect(view.locator("#batches .word").first).to_have_text("cancelling")
    expect(view.get_by_role("button", name="Cancel batch")).to_have_count(0)


def test_the_nodes_of_a_fleet_come_and_are_heard(view: Page, rows: Database):
    expect(view.locator("#nodes li")).to_have_count(0)
    scene.a_fleet(rows)
    expect(view.locator("#nodes li")).to_have_count(3)
    expect(view.locator("#nodes [data-key=node-mini]")).to_contain_text("no answer from 10.0.0.8:4002")
    fleet.change(rows, "studio", problem="away: no answer")
    expect(view.locator("#nodes [data-key=node-studio] strong")).to_have_text("down")
    expect(view.locator("#heard")).to_have_text("Node studio: down.")


def test_a_longer_range_and_one_scale_stay_while_the_page_changes(view: Page, rows: Database):
    axis = view.locator("[data-chart] .scale span:first-of-type")
    expect(axis).to_have_text(["40", "200", "80"])
    view.get_by_role("button", name="Week").click()
    expect(view.locator("[data-chart=fast]")).to_have_attribute("data-step", "3600")
    view.get_by_role("button", name="Same scale").click()
    until(lambda: len(set(axis.all_text_contents())) == 1)
    scene.die(rows, "fast")
    expect(view.locator("article[data-key=fast]")).to_contain_text("crashed, restarting")
    expect(view.locator("[data-chart=fast]")).to_have_attribute("data-step", "3600")


def test_a_screen_reader_hears_that_a_service_came_to_another_state_once(view: Page, rows: Database):
    expect(view.locator("#heard")).to_have_text("")
    scene.die(rows, "fast")
    expect(view.locator("#heard")).to_have_text("fast: crashed, restarting.")
    scene.begin(rows, "fast")
    scene.pull(rows)
    expect(view.locator("article[data-key=fast] .state strong")).to_have_text("down, loading")
    expect(view.locator("#heard")).to_have_text("fast: crashed, restarting.")


@pytest.mark.slow
def test_updates_leave_nothing_behind(chromium: Browser, rows: Database):
    """A hundred paintings in a tab, of jobs and events among others: neither the tab nor the process grows."""
    with support.running(rows.home, support.HURRIED) as served:
        view = chromium.new_context().new_page()
        view.goto(served.link)
        held = scene.pull(rows)
        expect(view.locator("#jobs progress")).to_be_visible()
        _bustle(view, rows, held, range(1, 300))
        before = served.size(view)
        view.evaluate(support.COUNT)
        steps = range(300, 500)
        while view.evaluate("window.seen") < 100:  # a busy machine paints several changes at once
            _bustle(view, rows, held, steps)
            steps = range(steps.stop, steps.stop + 200)
        after = served.size(view)
        view.context.close()
    assert after.heap - before.heap < 200_000
    assert after.nodes - before.nodes < 200
    assert after.process - before.process < 2 * 2**20
    assert event.of_job(rows, held.id)


def _bustle(view: Page, rows: Database, held: Claim, steps: range) -> None:
    """Change rows, and wait until the tab has seen the last change."""
    scene.bustle(rows, held, steps, 0.02)
    expect(view.locator("#jobs progress")).to_have_attribute("value", f"{(steps.stop - 1) % 1000 / 1000:.4f}")


def test_a_reload_leaves_nothing_spinning(view: Page, served: support.Running):
    """A viewer that leaves while another comes once left a bell ringing, and the process at full speed."""
    for _ in range(5):
        view.reload()
        view.wait_for_selector("#tiers .card")
    until(lambda: _steps_in(view, served, 2000) < 50)


def _steps_in(view: Page, served: support.Running, span_ms: float) -> int:
    """Return how much the page's process does in so long."""
    before = served.steps()
    view.wait_for_timeout(span_ms)
    return served.steps() - before


def test_the_page_stands_back_for_gateway_and_engines(served: support.Running):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, served.process.pid) == own + BEHIND


def test_nothing_runs_while_nobody_looks(served: support.Running, rows: Database, chromium: Browser):
    """The last viewer who leaves takes the watching along: no socket, no query."""
    sockets = wakeup.folder(served.home)
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served.link)
    page.wait_for_selector("#tiers .card")
    until(lambda: list(sockets.glob("watch-*-page.sock")))
    context.close()
    until(lambda: not list(sockets.glob("watch-*-page.sock")))
    before = served.steps()
    noise = threading.Event()
    for _ in range(20):
        scene.die(rows, "fast")
        scene.ready(rows, "fast")
        noise.wait(0.02)
    assert served.steps() == before
