"""Whom the page answers, and whom not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import click
import pytest
import yaml
from starlette.testclient import TestClient
from support import scene

from mlxq import service_status
from mlxq.cli import mlxq
from mlxq.web.app import WebApp, build
from mlxq.web.auth import PageAuth, link, metrics_key
from state import event, facts, fleet, job, service, settings
from state.db import Database
from state.job import JobState
from state.metrics import sample
from state.paths import Home
from tasks.plan import notices

KEY = "sk-mlxq-the-key-of-these-tests"
STRANGERS = ("evil.example", "127.0.0.1.evil.example:4001", "evil.example:4001", "", "[::1]", "0.0.0.0")
KEPT_BYTES = 64 * 1024
"""The begin of state.db, with its schema: it opens, and what it holds cannot be read."""
NOWHERE = ("/services/nobody/restart", "/services/fast/format", "/jobs/99/cancel", "/jobs/99/retry")
DOCS = Path(__file__).parents[3] / "docs"
ALERTS = DOCS / "prometheus-alerts.yml"
NAME = re.compile(r"mlxq_\w+")
READS = ("/", "/events", "/jobs/1", "/metrics", "/charts/day", "/timeline", "/services/fast", "/logs/fast/live")
ACTIONS = ("/jobs/1/cancel", "/jobs/1/retry", "/services/fast/restart", "/services/fast/stop", "/services/fast/start")
MACHINE = {
    "backend": "metal",
    "gpu_cores": 40,
    "bandwidth_gbps": 546.0,
    "bandwidth_source": "table",
    "fp16_tflops": 34.0,
}
ACTIONS += ("/services/fast/drain", "/stack/start", "/models/fast/load")


@pytest.fixture
def stranger(home: Home, rows: Database) -> TestClient:
    return TestClient(build(WebApp(home, PageAuth(KEY))), base_url="http://127.0.0.1:4001")


@pytest.fixture
def person(stranger: TestClient) -> TestClient:
    """Give a client with the cookie, and the token of its page as a header."""
    assert stranger.get(f"/enter?link={link(KEY, time.time())}").status_code == 200
    token = stranger.get("/").text.partition('name="mlxq-token" content="')[2].partition('"')[0]
    stranger.headers["x-mlxq-token"] = token
    return stranger


@pytest.mark.parametrize("path", READS)
def test_nothing_is_read_without_the_cookie(stranger: TestClient, path: str):
    answer = stranger.get(path)
    assert answer.status_code == 401
    assert "fast" not in answer.text


@pytest.mark.parametrize("path", ACTIONS)
def test_nothing_is_done_without_the_cookie(stranger: TestClient, rows: Database, path: str):
    assert stranger.post(path).status_code == 401
    assert rows.value("SELECT count(*) FROM jobs") == 0


@pytest.mark.parametrize("path", ACTIONS)
def test_nothing_is_done_without_the_token(person: TestClient, rows: Database, path: str):
    """A page of another origin has the browser send the cookie along; it cannot read the token."""
    del person.headers["x-mlxq-token"]
    assert person.post(path).status_code == 403
    assert rows.value("SELECT count(*) FROM jobs") == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_nothing_is_done_for_another_page_even_with_the_token(person: TestClient, rows: Database, site: str):
    """Another port of this machine is the same site, and not the same origin."""
    assert person.post("/services/fast/stop", headers={"sec-fetch-site": site}).status_code == 403
    assert rows.value("SELECT count(*) FROM jobs") == 0


@pytest.mark.parametrize("host", STRANGERS)
@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/static/page.js"])
def test_a_foreign_host_name_is_refused(person: TestClient, host: str, path: str):
    """A stranger's DNS name that points to this machine would else make our answers theirs."""
    assert person.get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9000"])
def test_our_own_names_are_answered_through_a_tunnel_too(person: TestClient, host: str):
    assert person.get("/health", headers={"host": host}).status_code == 200


def test_a_link_opens_once(stranger: TestClient):
    way = f"/enter?link={link(KEY, time.time())}"
    first = stranger.get(way)
    assert "HttpOnly; Max-Age=2592000; Path=/; SameSite=strict" in first.headers["set-cookie"]
    assert stranger.get(way).status_code == 401


def test_rows_that_cannot_be_read_after_the_page_began_are_said_in_it(person: TestClient, rows: Database):
    """The page begins before they are read; it ends as a document all the same."""
    rows.run("PRAGMA wal_checkpoint(TRUNCATE)")
    size = rows.home.database.stat().st_size
    with rows.home.database.open("r+b") as file:
        file.seek(KEPT_BYTES)
        file.write(bytes(range(256)) * ((size - KEPT_BYTES) // 256))

    page = person.get("/").text

    assert page.startswith("<!doctype html>")
    assert "mlxq doctor" in page
    assert page.rstrip().endswith("</html>")
    assert page.count("<header") == page.count("</header>") == 1


def test_a_service_job_is_put_in_once(person: TestClient, rows: Database):
    assert person.post("/services/fast/restart").json() == {"message": "Job 1: restart fast"}
    assert person.post("/services/fast/restart").json() == {"message": "Job 1 is already doing this."}
    assert rows.value("SELECT count(*) FROM jobs") == 1


def test_a_stop_cuts_a_drain_short(person: TestClient, rows: Database):
    """The row says that it is not wanted, so that the watchdog stops it even when the drain had not begun."""
    assert person.post("/services/fast/drain").json() == {"message": "Job 1: drain fast"}
    assert person.post("/services/fast/drain").json() == {"message": "Job 1 is already doing this."}
    assert person.post("/services/fast/stop").json() == {"message": "Job 1: drain cancelled, stopping now."}
    assert job.get(rows, 1).state is JobState.CANCELLED
    assert service.get(rows, "fast").desired == "down"


def test_a_model_on_demand_is_loaded_and_let_sleep(person: TestClient, rows: Database):
    scene.on_the_disk(rows)
    shown = person.get("/").text
    assert "1 more model on this disk" in shown
    assert 'data-post="/models/gemma-3-4b/load"' in shown
    assert 'data-post="/models/qwen3-8b/unload"' in shown
    assert 'data-post="/services/qwen3-8b/' not in shown
    assert person.post("/models/gemma-3-4b/load").json() == {"message": "Job 1: load gemma-3-4b"}
    assert person.post("/models/qwen3-8b/unload").json() == {"message": "Job 2: unload qwen3-8b"}
    assert person.post("/models/fast/unload").json()["message"].startswith("fast belongs to the stack")
    assert person.post("/models/unknown/load").status_code == 404


def test_all_is_started_by_one_button_that_is_there_only_when_all_is_stopped(person: TestClient, rows: Database):
    scene.all_ready(rows)
    assert 'data-post="/stack/start"' not in person.get("/").text
    scene.stop_all(rows)
    assert 'data-post="/stack/start"' in person.get("/").text
    person.post("/stack/start")
    jobs = [(row["kind"], row["service"]) for row in rows.rows("SELECT kind, args ->> 'service' AS service FROM jobs")]
    starts = [("start", name) for name in ("standard", "fast", "longctx", "gateway", "page")]
    assert jobs == [("configure", None), *starts]


def test_older_events_are_a_page_away(person: TestClient, rows: Database):
    for number in range(260):
        event.record(rows, "cache_purged", service="fast", cause=f"cause {number}.")
    first = person.get("/timeline").text
    assert "cause 259." in first
    assert "cause 59." not in first
    older = re.search(r'href="(/timeline\?before=\d+)"', first)
    assert older
    second = person.get(older[1]).text
    assert "cause 59." in second
    assert "Older events" not in second
    assert person.get("/timeline?before=x").status_code == 200


def test_a_service_has_a_page_of_its_own(person: TestClient, rows: Database):
    scene.all_ready(rows)
    scene.an_hour(rows)
    scene.benchmarks(rows)
    facts.put(rows, "machine", {**facts.get(rows, "machine"), **MACHINE})
    text = re.sub(r"<[^>]+>|\s+", " ", person.get("/services/standard").text)
    for words in ("weights", "KV cache", "prompts kept", "share of the budget", "in use now", "in use, last 7 days"):
        assert words in text
    assert re.search(r"(predicted|published|rough guess), after 8K tokens", text)
    assert text.count("benchmark ") == 4
    assert "last week" in person.get("/services/standard/charts/week").text
    assert person.get("/services/gateway").status_code == 200
    missing = [person.get(path) for path in ("/services/nothing", "/services/standard/charts/year", "/logs/nothing")]
    assert [answer.status_code for answer in missing] == [404, 404, 404]


@pytest.mark.parametrize("name", ["hour", "day", "week"])
def test_charts_of_a_range_are_served(person: TestClient, rows: Database, name: str):
    scene.all_ready(rows)
    scene.an_hour(rows)
    text = person.get(f"/charts/{name}?scale=shared").text
    assert text.count('role="slider"') == 3
    assert f"last {name}" in text


@pytest.mark.parametrize("path", NOWHERE)
def test_what_is_not_there_is_a_sentence(person: TestClient, path: str):
    answer = person.post(path)
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("There is no")


@pytest.mark.parametrize("number", ["99", str(2**63), "9" * 30, "-1", "x"])
def test_a_job_of_any_number_is_not_there(person: TestClient, number: str):
    """Beyond SQLite's integers, too."""
    assert person.get(f"/jobs/{number}").status_code == 404
    assert person.post(f"/jobs/{number}/cancel").status_code == 404
    assert person.post(f"/jobs/{number}/retry").status_code == 404


def test_a_job_that_ended_cannot_be_cancelled(person: TestClient, rows: Database):
    number = scene.succeed(rows, "smoke_test")
    assert person.post(f"/jobs/{number}/cancel").status_code == 409


def test_an_action_by_get_is_no_action(person: TestClient, rows: Database):
    assert person.get("/services/fast/stop").status_code == 405


def test_every_answer_carries_the_policy(person: TestClient):
    for path in ("/", "/health", "/static/page.js", "/nowhere"):
        headers = person.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host_and_no_inline_code(person: TestClient):
    """It works offline, and under its own policy."""
    text = person.get("/").text
    assert "style=" not in text
    assert "onclick" not in text
    assert text.count("<script") == text.count('<script src="/static/')
    addresses = {part.split('"')[0] for part in text.split("http")[1:]}
    assert all(address.startswith("://127.0.0.1:") for address in addresses)


def test_first_load_is_below_100_kb(person: TestClient):
    size = len(person.get("/").content)
    size += sum(len(person.get(f"/static/{name}").content) for name in ("page.css", "page.js", "mark.svg"))
    assert size <= 100_000


def test_a_scraper_needs_the_pages_key(stranger: TestClient, rows: Database):
    scene.an_hour(rows)
    scene.die(rows, "fast")
    for key in ("nonsense", KEY):
        refusal = stranger.get("/metrics", headers={"authorization": f"Bearer {key}"})
        assert (refusal.status_code, refusal.text) == (401, "This needs a key. Run: mlxq connect prometheus\n")
    assert stranger.get("/events", headers={"authorization": f"Bearer {metrics_key(KEY)}"}).status_code == 401
    text = stranger.get("/metrics", headers={"authorization": f"Bearer {metrics_key(KEY)}"}).text
    assert 'mlxq_service_up{service="fast"} 0.0' in text
    assert 'mlxq_service_up{service="standard"} 1.0' in text
    assert 'mlxq_service_deaths_total{cause="Killed by SIGKILL.",service="fast"} 1.0' in text
    made = next(each for each in sample.totals(rows) if each.service == "fast").completion_tokens
    assert f'mlxq_completion_tokens_total{{service="fast"}} {float(made)}' in text


def test_promtool_finds_nothing_to_blame(person: TestClient, rows: Database):
    if shutil.which("promtool") is None:
        pytest.skip("Debian's prometheus is not installed")
    scene.an_hour(rows)
    scene.die(rows, "fast")
    scene.succeed(rows, "smoke_test")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=person.get("/metrics").content, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")


def test_before_setup_the_page_says_what_to_do(tmp_path: Path):
    place = Home(tmp_path / "empty").make()
    client = TestClient(build(WebApp(place, PageAuth(KEY))), base_url="http://127.0.0.1:4001")
    client.get(f"/enter?link={link(KEY, time.time())}")
    assert "mlxq setup" in client.get("/").text


def test_the_grafana_board_and_the_alerts_ask_only_for_metrics_there_are(person: TestClient, rows: Database):
    scene.an_hour(rows)
    scene.die(rows, "fast")
    scene.succeed(rows, "smoke_test")
    for name in notices.SINGLE:
        event.record(rows, name, subject="x", cause="y")
    fleet.put(rows, fleet.Node("other", "openai", "http://10.0.0.2:8000"))
    settings.write(rows.home, "openrouter-key", "sk-or-1")
    text = person.get("/metrics").text
    there = set(re.findall(r"^(mlxq_\w+)", text, re.MULTILINE))
    board = json.loads((DOCS / "grafana.json").read_text())
    drawn = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    alerts = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert {
        name for asked in [*drawn, *alerts] for name in NAME.findall(re.sub(r"\"[^\"]*\"", "", asked))
    } - there == set()

    named = {match for asked in alerts for match in re.findall(r'event="(\w+)"', asked)}
    assert {f'mlxq_event_last_timestamp_seconds{{event="{name}"}}' for name in named} <= {
        line.rpartition(" ")[0] for line in text.splitlines()
    }
    reasons = {match for asked in alerts for match in re.findall(r'reason="([\w ]+)"', asked)}
    assert reasons <= set(service_status.REASONS.values())


def test_each_change_that_is_notified_of_has_an_alert():
    rules = ALERTS.read_text()
    names = {row[0].removeprefix("mlxq_") for row in [*notices.PROBLEMS.values(), *notices.SINGLE.values()]}
    assert [name for name in names if f"Mlxq{name.title().replace('_', '')}" not in rules] == []


def test_promtool_finds_the_alerts_right():
    if shutil.which("promtool") is None:
        pytest.skip("Debian's prometheus is not installed")
    tests = Path(__file__).parents[2] / "fixtures" / "prometheus_alerts_test.yml"
    for argv in (["check", "rules", str(ALERTS)], ["test", "rules", str(tests)]):
        checked = subprocess.run(["promtool", *argv], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_command_the_page_names_exists(person: TestClient, rows: Database):
    """Snippets and hints go stale when a command is renamed."""
    scene.die(rows, "fast")
    scene.fail(rows)
    named = {line.split()[1] for line in re.findall(r"mlxq [a-z][a-z-]+", person.get("/").text)}
    assert {"connect", "logs", "verify"} <= named
    assert named - set(mlxq.list_commands(click.Context(mlxq))) == set()
