"""What is said of services, of the whole, and drawn of their hours."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import scene

from mlxq import service_events
from mlxq.commands import dashboard, top
from mlxq.top import draw
from mlxq.web import engine_status, labels, snapshot
from mlxq.web.html import HtmlRenderer
from mlxq.web.labels import Shape
from state import event, ledger, safe_mode, service, settings
from state.db import Database
from state.errors import NotRunning, NotSetUp
from state.metrics import usage
from state.metrics.sample import Sample
from state.paths import Home
from state.service import ServiceEvent, State
from tasks import kinds
from tasks.plan import health, request_stats
from tasks.supervision import probe
from tasks.worker_status import WorkerState

ROOT = Path(__file__).parents[3]


def whole(db: Database, worker: WorkerState = WorkerState.ALIVE) -> labels.StatusLabel:
    return labels.of_all(service.listing(db), worker, chosen=True)


@pytest.mark.parametrize(
    ("state", "desired", "verbs"),
    [
        ("ready", "up", "restart drain stop"),
        ("loading", "up", "stop"),
        ("failed", "up", "start"),
        ("crash_loop", "up", "restart stop"),
        ("disk_unavailable", "up", "stop"),
        ("draining", "up", "stop"),
        ("stopped", "up", "stop"),
        ("stopping", "up", ""),
        ("stopped", "down", "start"),
        ("failed", "down", "start"),
        ("draining", "down", "stop"),
        ("stopping", "down", ""),
    ],
)
def test_only_what_makes_sense_in_a_state_is_offered(state: str, desired: str, verbs: str, rows: Database) -> None:
    row = dataclasses.replace(service.get(rows, "fast"), state=State(state), desired=desired)
    assert " ".join(labels.actions(row)) == verbs
    gateway = dataclasses.replace(service.get(rows, "gateway"), state=State.READY)
    assert labels.actions(gateway) == ["restart", "stop"]


def test_every_state_has_a_mark():
    assert set(labels.SHAPES) == set(State)


def test_all_ready_is_serving(rows: Database):
    assert (whole(rows).word, whole(rows).shape, whole(rows).reason) == ("healthy", Shape.FULL, "")


def test_one_tier_down_is_degraded_and_named(rows: Database):
    scene.die(rows, "fast")
    assert (whole(rows).word, whole(rows).reason) == ("degraded", "fast: crashed, restarting")


def test_without_the_gateway_nobody_is_served(rows: Database):
    scene.die(rows, "gateway")
    assert (whole(rows).word, whole(rows).shape) == ("down", Shape.HALF)


def test_a_tier_that_was_put_down_is_no_fault(rows: Database):
    service.set_desired(rows, "longctx", "down")
    service.apply(rows, "longctx", service.ServiceEvent.STOPPED)
    assert whole(rows).word == "healthy"


def test_nothing_wanted_is_stopped_and_nothing_set_up_says_how(rows: Database):
    for one in service.listing(rows):
        service.set_desired(rows, one.name, "down")
        service.apply(rows, one.name, service.ServiceEvent.STOPPED)
    assert (whole(rows).word, whole(rows).hint) == ("stopped", "mlxq up")
    assert labels.of_all([], WorkerState.ALIVE, chosen=False).hint == "mlxq setup"


def test_a_stack_that_was_never_started_is_stopped(rows: Database):
    for one in service.listing(rows):
        service.set_desired(rows, one.name, "down")
        service.apply(rows, one.name, service.ServiceEvent.STOPPED)
        service.remove(rows, one.name)
    told = snapshot.take(rows, {}).label
    assert (told.word, told.hint) == ("stopped", "mlxq up")
    assert "mlxq up" in HtmlRenderer().part("tiers", seen=snapshot.take(rows, {}))


@pytest.mark.parametrize("worker", [WorkerState.NONE, WorkerState.HUNG, WorkerState.DEAD])
def test_what_nobody_watches_over_is_not_well(rows: Database, worker: WorkerState):
    told = whole(rows, worker)
    assert (told.word, told.shape) == ("healthy", Shape.WARN)
    assert told.reason == ("the worker hangs" if worker is WorkerState.HUNG else "no worker is running")


def test_backing_off_says_until_when_and_why(rows: Database):
    scene.die(rows, "fast", wait_s=30)
    told = labels.of_service(service.get(rows, "fast"))
    assert (told.word, told.shape) == ("crashed, restarting", Shape.CROSS)
    assert told.reason == "Killed by SIGKILL. (exit 1 of 5)"
    assert told.until == service.get(rows, "fast").next_try_at


def test_the_timeline_is_newest_first_and_names_the_signal_once(rows: Database):
    scene.die(rows, "fast")
    newest = labels.timeline(event.of_service(rows, None))[0]
    assert (newest.service, newest.word, newest.text) == ("fast", "Exited", "Killed by SIGKILL.")


def told_events() -> set[str]:
    """Every name under which the sources write an event of a service."""
    names: set[str] = set(ServiceEvent)
    for path in [each for folder in ("state", "tasks", "mlxq") for each in (ROOT / folder).rglob("*.py")]:
        for call in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]:
            if ast.unparse(call.func) == "event.record" and "service" in {each.arg for each in call.keywords}:
                name = call.args[1]
                if isinstance(name, ast.Constant):
                    names.add(str(name.value))
                elif ast.unparse(name).startswith("REQUESTED"):
                    names |= set(service.REQUESTED.values())
    return names


def test_every_event_of_a_service_has_words_on_the_page_and_in_why():
    told = told_events()
    assert {"cache_purged", "safe_mode", "unclean_boot", "escalated", "start_requested", "exited"} <= told
    assert told - labels.MARKS.keys() - labels.UNTOLD == set()
    assert told - service_events.REASONS.keys() == set()
    assert told - service_events.MESSAGES.keys() == set()


def test_an_event_says_its_cause_and_else_what_it_means(rows: Database):
    event.record(rows, "safe_mode", service="fast")
    event.record(rows, "escalated", service="gateway", cause="Every tier is in a crash loop.")
    newest = labels.timeline(event.of_service(rows, None))[:2]
    assert [(each.word, each.text) for each in newest] == [
        ("Escalated", "Every tier is in a crash loop."),
        ("Safe mode", "it starts with a smaller cache from now on"),
    ]


def test_the_terminals_chart_is_a_character_a_minute():
    now = 6000.0
    samples = [Sample("fast", 60 * (100 - back), 60, completion_tokens=600 * back) for back in (3, 2, 1)]
    drawn = draw.spark(samples, now)
    assert len(drawn) == draw.MINUTES
    assert drawn.endswith("█▆▃")


def test_top_prints_what_the_page_shows(rows: Database):
    scene.an_hour(rows)
    scene.beat(rows)
    scene.die(rows, "fast")
    scene.pull(rows)
    number = scene.fail(rows)
    told = CliRunner().invoke(top.command, ["--once"], env={"COLUMNS": "140"}).output
    assert "degraded  fast: crashed, restarting" in told
    assert "43%" in told
    assert f"✗ {number:>4} restart fast" in told
    assert "fast Exited  Killed by SIGKILL." in told


def test_on_a_narrow_terminal_the_figures_stay_whole(rows: Database):
    """Eighty columns, as over SSH; the charts stand back."""
    scene.an_hour(rows)
    told = CliRunner().invoke(top.command, ["--once"], env={"COLUMNS": "80"}).output
    table = told[told.index("SERVICE") : told.index("page")]
    heads = " ".join(table.split("\n")[0].split())
    assert heads.startswith("SERVICE STATE RUN WAIT TOK/S TTFT UP MEMORY RESTARTS")
    assert "LAST 30 MIN" not in table
    assert "…" not in table
    assert re.search(r"standard +● healthy", table)


def test_a_failure_that_was_tried_again_needs_no_attention(rows: Database):
    scene.fail(rows)
    number = scene.fail(rows)
    assert [each.id for each in snapshot.take(rows, {}).attention] == [number]
    scene.succeed(rows, "restart", service="fast")
    assert snapshot.take(rows, {}).attention == []


@pytest.mark.parametrize(
    ("failed", "later"),
    [
        (("pull", {"source": "hub:x/y", "force": True}), ("pull", {"source": "hub:x/y"})),
        (("pull", {"source": "hub:x/y"}), ("pull", {"source": "hub:x/y", "revision": "1"})),
        (("restart", {"service": "fast"}), ("start", {"service": "fast"})),
    ],
)
def test_a_failure_needs_no_attention_once_the_same_thing_succeeded(
    failed: tuple[str, dict[str, Any]], later: tuple[str, dict[str, Any]], rows: Database
):
    """Of the same weights or service, with whatever options."""
    number = scene.fail_job(rows, *failed)
    other = scene.fail_job(rows, failed[0], dict.fromkeys(failed[1], "other"))
    assert [job.id for job in snapshot.take(rows, {}).attention] == [other, number]
    scene.succeed(rows, later[0], **later[1])
    assert [job.id for job in snapshot.take(rows, {}).attention] == [other]


def test_a_failure_needs_no_attention_once_the_service_serves_again_by_itself(rows: Database):
    scene.all_ready(rows)
    number = scene.fail_job(rows, "restart", {"service": "fast"})
    scene.die(rows, "fast")
    assert [job.id for job in snapshot.take(rows, {}).attention] == [number]
    scene.ready(rows, "fast")
    assert snapshot.take(rows, {}).attention == []


def test_dashboard_says_how_to_switch_the_page_on(home: Home):
    settings.write(home, "page-port", 0)
    told = CliRunner().invoke(dashboard.command, ["--no-open"]).exception
    assert isinstance(told, NotRunning)
    assert told.hint == "mlxq config reset page-port"


def test_benchmarks_tell_how_the_speed_changed(rows: Database):
    scene.benchmarks(rows)
    courses = {course.last.model: course for course in snapshot.take(rows, {}).trends}
    assert len(courses["qwen3.5-27b"].benches) == 4
    assert round(courses["qwen3.5-4b"].change or 0) == -19


def test_usage_and_the_clouds_spending_are_told(rows: Database, home: Home):
    scene.a_week(rows)
    usage.add(rows, [usage.Usage("2020-01-01", "editor", "fast", requests=9)])
    painted = HtmlRenderer().sections(snapshot.take(rows, {}))["use"]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", painted)[:7] == ["fast", "1,400", "14", "3.1M", "67%", "315.0k", "0.6s"]
    assert "Cloud: off. Today 3 requests, $0.03 of $1.00." in painted
    settings.write(home, "openrouter-key", "sk-or-secret")
    painted = HtmlRenderer().sections(snapshot.take(rows, {}))["use"]
    assert "if no tier can answer. Today 3 requests" in painted
    assert "sk-or-secret" not in painted


def test_without_a_cloud_the_page_says_that_nothing_leaves(rows: Database):
    assert "No request leaves this machine." in HtmlRenderer().sections(snapshot.take(rows, {}))["use"]


def test_a_tier_that_is_held_back_says_why_and_what_helps(rows: Database):
    safe_mode.enter(rows, "fast", safe_mode.SafeMode(1, sentence=safe_mode.TOLD))
    painted = HtmlRenderer().sections(snapshot.take(rows, {}))["tiers"]
    assert safe_mode.TOLD in painted
    assert "<code>mlxq config set memory-budget-pct 30</code>" in painted


def test_dashboard_starts_nothing_where_nothing_is_set_up(home: Home):
    told = CliRunner().invoke(dashboard.command, ["--no-open"]).exception
    assert isinstance(told, NotSetUp)
    assert not list(home.run.glob("*.lock"))


def test_a_refused_rm_was_told_to_who_asked_and_needs_no_attention(rows: Database):
    number = scene.fail(rows)
    ledger.enqueue(rows, kinds.new("remove_weights", {"folder": "/models/a", "force": False}))
    rows.run(
        "UPDATE jobs SET state = 'failed', finished_at = ?, error_code = 'busy' WHERE kind = 'remove_weights'",
        (rows.now(),),
    )
    assert [each.id for each in snapshot.take(rows, {}).attention] == [number]


def test_the_watchdogs_question_is_nobodys_request(rows: Database, monkeypatch: pytest.MonkeyPatch):
    """An idle machine shows no request, and runs none."""
    check = {"request_id": "a", "phase": "generation", "prompt_tokens": 9, "max_tokens": 1}
    for listed, phases, running in (([check], [], "0"), ([check, check | {"max_tokens": 200}], ["generation"], "1")):
        body = {"requests": listed, "num_running": len(listed)}
        said = (health.read_status(body), request_stats.read_requests(body))
        monkeypatch.setattr(probe, "detailed_status", lambda *_, said=said, **__: said)
        scene.set_up(rows)
        service.update(rows, "fast", state="ready")
        seen = snapshot.take(rows, engine_status.ask([service.get(rows, "fast")], "key"))
        painted = HtmlRenderer().sections(seen)
        assert re.findall(r"<td>(\w*)</td>", painted["now"])[1::2] == phases
        assert f"<dt>running</dt><dd>{running}</dd>" in painted["tiers"]


def test_the_nodes_of_a_fleet_are_told_with_state_reason_and_load(rows: Database):
    assert HtmlRenderer().sections(snapshot.take(rows, {}))["nodes"].strip() == ""
    scene.a_fleet(rows)
    painted = re.sub(r"<[^>]*>", "", HtmlRenderer().sections(snapshot.take(rows, {}))["nodes"])
    told = " ".join(painted.split())
    assert "studio healthy standard, fast and 1 by repo · 2 requests · mlxq 0.1.0" in told
    assert "mini down nothing" in told
    assert "away: no answer from 10.0.0.8:4002" in told
    assert "lab draining nothing · 0 requests · openai" in told


def test_a_batch_is_told_once_and_can_be_cancelled_there(rows: Database):
    scene.batches_and_schedules(rows)
    seen = snapshot.take(rows, {})
    painted = HtmlRenderer().sections(seen)
    assert seen.chains == []
    assert "batch_" not in painted["jobs"]
    batch = seen.batches[0][0]
    assert f'data-post="/batches/{batch.id}/cancel"' in painted["batches"]


def test_a_job_is_told_in_words(rows: Database):
    scene.succeed(rows, "smoke_test")
    scene.succeed(rows, "verify_weights", folder="/models/x")
    painted = HtmlRenderer().sections(snapshot.take(rows, {}))["jobs"]
    assert "smoke test" in painted
    assert "verify weights" in painted
    assert "_" not in re.sub(r"<[^>]*>", "", painted)


def test_a_tier_that_does_not_serve_has_no_speed(rows: Database):
    scene.all_ready(rows)
    scene.an_hour(rows)
    speeds = {card.title: card.decode_tps for card in snapshot.take(rows, {}).cards}
    assert all(speeds.values())
    scene.die(rows, "fast")
    speeds = {card.title: card.decode_tps for card in snapshot.take(rows, {}).cards}
    assert speeds["fast"] is None
    assert speeds["standard"]


def test_what_is_not_known_is_the_same_dash_everywhere_on_a_card(rows: Database):
    painted = HtmlRenderer().sections(snapshot.take(rows, {}))["tiers"]
    assert "<dt>TTFT</dt><dd>–</dd>" in painted  # noqa: RUF001 (the page's own dash)
    assert "<dd>-</dd>" not in painted
