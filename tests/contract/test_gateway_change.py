"""Changes of the stack while the gateway runs: proven beside it, and applied by replacing it, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from support.ports import free_port

from mlxq import service as units
from state import job, ledger, secrets, service, settings, stack
from state.db import Database
from state.job import Job
from state.paths import Home
from state.service import Doing, Step
from tasks import attempt, configure, kinds, proof, runtime, tier
from tasks.world import process

if TYPE_CHECKING:
    from conftest import Upstream

TASKS: dict[str, Callable[..., Any]] = {"configure": configure.configure, "start": tier.start, "stop": tier.stop}
Run = Callable[..., Job]
pytestmark = pytest.mark.slow


@pytest.fixture
def run(db: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Put one job in, run it here as the worker does, and give its row."""
    ours = runtime.Runtime()
    ours.home, ours.owner, ours._local.database = home, "the worker", db
    for module in (attempt, runtime):
        monkeypatch.setattr(module, "runtime", ours)

    def one(kind: str, /, **args: Any) -> Job:
        number = ledger.submit(db, kinds.new(kind, args))[0]
        held = ledger.claim(db, "ops", {kind}, "the worker")
        assert held
        attempt.perform(kinds.KINDS[kind], TASKS[kind], held)
        return job.get(db, number)

    return one


def is_up(db: Database, one: Upstream) -> None:
    """Write down that a stand-in is this tier's engine and ready."""
    assert one.process
    found = process.identify(one.process.pid)
    assert found
    service.ensure(db, one.name, "engine", one.port)
    service.intend(db, one.name, ["stand-in"], "print")
    service.step(db, one.name, Step.SPAWNED, identity=process.encode(found), started_at=db.now())
    service.step(db, one.name, Step.READIED, ready_at=db.now())
    assert service.get(db, one.name).doing == Doing.READY


@pytest.fixture
def serving(db: Database, home: Home, run: Run, every_upstream: dict[str, Upstream]) -> Iterator[service.Service]:
    """Give the row of a gateway that serves the tier `standard`."""
    settings.write(home, "litellm-port", free_port())
    every_upstream["standard"].start()
    is_up(db, every_upstream["standard"])
    stack.replace(db, [every_upstream["standard"].tier()])
    try:
        for done in (run("configure"), run("start", service="gateway")):
            assert done.state == "succeeded", done.error
        yield service.get(db, "gateway")
    finally:
        run("stop", service="gateway")


def answers(home: Home, model: str) -> int:
    key = secrets.read(home.secrets)[secrets.MASTER]
    body = {"model": model, "messages": [{"role": "user", "content": "say hi"}]}
    url = f"http://127.0.0.1:{settings.load(home)['litellm-port']}/v1/chat/completions"
    return httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code


def test_a_change_of_tiers_is_proven_then_applied(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    """The tier that is up answers the trial; the one that is still to come is not waited for."""
    asked = len(every_upstream["standard"].seen())
    stack.replace(db, [every_upstream["standard"].tier(), replace(every_upstream["fast"].tier(), port=free_port())])

    assert run("configure").state == "succeeded"

    assert len(every_upstream["standard"].seen()) == asked + 1
    assert process.find_orphans(str(home.root), proof.NAME) == {}
    assert service.get(db, "gateway").identity == serving.identity
    assert answers(home, "fast") == 404
    run("start", service="gateway")
    assert service.get(db, "gateway").identity != serving.identity
    assert answers(home, "fast") == 200


def test_a_change_that_does_not_work_changes_nothing(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    """The tier is up, and the new configuration asks for it where nobody is."""
    before = home.gateway_config.read_text()
    stack.replace(db, [replace(every_upstream["standard"].tier(), port=free_port())])

    failed = run("configure")

    assert failed.error
    assert "The running gateway was left as it is." in failed.error
    assert home.gateway_config.read_text() == before
    assert process.find_orphans(str(home.root), proof.NAME) == {}
    assert answers(home, "standard") == 200


def test_another_model_at_the_same_tier_leaves_the_gateway_alone(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    stack.replace(db, [replace(every_upstream["standard"].tier(), model="another", quant="int8")])

    done = run("configure")
    run("start", service="gateway")

    assert (done.result or {})["changed"] is False
    assert service.get(db, "gateway").identity == serving.identity


def test_no_key_is_told_to_anybody(home: Home, db: Database, run: Run, serving: service.Service):
    """Not on a command line, in a log, in a row, in a unit file, nor in any file that is not for keys."""
    settings.write(home, "openrouter-key", "sk-or-v1-of-the-scan")
    run("configure")
    run("start", service="gateway")
    answers(home, "standard")
    keys = [*secrets.read(home.secrets).values(), "sk-or-v1-of-the-scan"]
    db.run("PRAGMA wal_checkpoint(TRUNCATE)")

    told = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}
    for path in (home.secrets, home.config):
        assert path.stat().st_mode & 0o077 == 0
        del told[path]
    found = process.decode(service.get(db, "gateway").identity or "")
    told[home.root / "argv"] = " ".join(psutil.Process(found.pid).cmdline()).encode()
    unit = units.place(system=False)
    told[home.root / "unit"] = units.systemd(unit).encode() + units.launchd(unit)
    assert any(path.name == "state.db" for path in told)
    assert any(path.name == "gateway.log" for path in told)
    assert [(path, key) for path, content in told.items() for key in keys if key.encode() in content] == []
