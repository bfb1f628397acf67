"""Changes of the stack while the gateway runs: proven beside it, and applied by replacing it, or not at all."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support import loopback
from support.clock import Clock
from support.gateway import Upstream
from support.here import Run, runner
from support.load import Load
from support.mlxq_home import Mlxq, until
from support.ports import free_port

from mlxq import autostart
from mlxq.autostart import launchd, systemd
from state import event, keys, ledger, secrets, service, settings, stack
from state.db import Database, open_database
from state.metrics import usage
from state.paths import Home
from state.service import ServiceEvent, State
from tasks import configure, executor, runtime, smoke_test
from tasks.supervision import candidate, lifecycle, repairs, services, socket_handover, spec, watchdog
from tasks.system import certificates, ports, process

TASKS: dict[str, Callable[..., Any]] = {
    "configure": configure.configure,
    "start": services.start,
    "stop": services.stop,
}
TASKS |= {"restart": services.restart, "smoke_test": smoke_test.smoke_test}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Home]:
    """Return the home of all tests here: a start of a gateway costs seconds, and most leave it as it was."""
    made = empty_home(tmp_path_factory.mktemp("changed"), empty_database)
    keys.create(keys.file(made), "app")
    yield made
    while repairs._watchers:
        repairs._watchers.pop().close()


def empty_home(root: Path, empty_database: Path) -> Home:
    """Return a home with a migrated database, whose gateway has a port of its own."""
    made = Home(root / "home").make()
    shutil.copyfile(empty_database, made.database)
    made.database.chmod(0o600)
    settings.write(made, "litellm-port", free_port())
    return made


@pytest.fixture(scope="module")
def db(home: Home) -> Iterator[Database]:
    with closing(open_database(home, clock=Clock())) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(db: Database, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Put one job in, run it here as the worker does, and return its row."""
    with pytest.MonkeyPatch.context() as patch:
        ours = runner(db, home, TASKS, patch)
        patch.setattr(runtime, "runtime", executor.runtime)
        aside = runtime.Runtime()  # what the watchdog asks for at an end must reach no worker
        aside.home = Home(tmp_path_factory.mktemp("aside") / "home").make()
        patch.setattr(repairs, "runtime", aside)
        patch.setattr(watchdog, "runtime", aside)
        yield ours
        ours("stop", service="gateway")


def is_up(db: Database, one: Upstream) -> None:
    """Write down that a stand-in is this tier's engine and ready, at its own port."""
    if (row := service.find(db, one.name)) and row.state == State.READY:
        service.update(db, one.name, port=one.port)
        return
    assert one.process
    identity = process.identify(one.process.pid)
    assert identity
    service.ensure(db, one.name, "engine", one.port)
    service.request_start(db, one.name, ["stand-in"], "print", one.port)
    service.apply(db, one.name, ServiceEvent.SPAWNED, identity=process.encode(identity), started_at=db.now())
    service.apply(db, one.name, ServiceEvent.BECAME_READY, ready_at=db.now())
    assert service.get(db, one.name).state == State.READY


def settled(home: Home, db: Database) -> service.Service:
    """Wait until every gateway that was replaced has ended, and give the row of the one that is left."""
    until(lambda: not lifecycle.leaving(service.get(db, "gateway")))
    one = service.get(db, "gateway")
    assert [process.encode(left) for left in process.find_orphans(str(home.root), "gateway")] == [one.identity]
    assert (one.state, one.successor) == (State.READY, None)
    return one


@pytest.fixture
def serving(
    db: Database, home: Home, run: Run, every_upstream: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch
) -> service.Service:
    """Return the row of a gateway that serves the tier `standard`; it is replaced only if a test changed it."""
    monkeypatch.setenv("MLXQ_HOME", str(home.root))
    every_upstream["standard"].start()
    is_up(db, every_upstream["standard"])
    stack.replace(db, [every_upstream["standard"].tier()])
    for done in (run("configure"), run("start", service="gateway")):
        assert done.state == "succeeded", done.error
    return settled(home, db)


def answers(home: Home, model: str) -> int:
    key = secrets.read(home.secrets)[secrets.MASTER]
    body = {"model": model, "messages": [{"role": "user", "content": "say hi"}]}
    url = f"http://127.0.0.1:{settings.load(home)['litellm-port']}/v1/chat/completions"
    return loopback.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code


def counted(db: Database) -> int:
    return sum(row["requests"] for row in usage.totals(db))


def test_no_client_notices_that_the_gateway_is_replaced(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    """More tiers, another setting, a restart, be it one that purges: nothing refused or cut, no proof counted.

    The first test here, as it counts what this home was asked.
    """
    key = secrets.read(home.secrets)[secrets.MASTER]
    with Load(serving.port, key) as load:
        streams = [load.held_stream()]
        stack.replace(db, [every_upstream["standard"].tier(), replace(every_upstream["fast"].tier(), port=free_port())])
        done = [run("configure"), run("start", service="gateway")]
        streams.append(load.held_stream())
        settings.write(home, "gateway-host", "0.0.0.0")
        done.append(run("start", service="gateway"))
        settings.write(home, "gateway-tls", True)
        done.append(run("restart", service="gateway", purge=True))
        assert encrypted(home, serving.port)
        settings.reset(home, "gateway-host")
        settings.reset(home, "gateway-tls")
        done.append(run("start", service="gateway"))
        every_upstream["standard"].release()
        for stream in streams:
            stream.join()
        load.await_more()
    replaced = settled(home, db)

    assert [each.error for each in done if each.error] == []
    assert load.failures == []
    assert load.answered > 50
    assert replaced.generation == serving.generation + 4
    assert replaced.exits == []
    assert answers(home, "fast") == 200
    run("stop", service="gateway")
    assert counted(db) == load.answered + 1


def encrypted(home: Home, port: int) -> bool:
    """Return whether another address than 127.0.0.1 is answered to who trusts the authority of this home."""
    context = ssl.create_default_context(cafile=str(certificates.authority_file(home.tls)))
    url = f"https://127.0.0.2:{port}/health/readiness"
    context.check_hostname = False  # of the addresses of loopback it names the first alone
    return httpx.get(url, verify=context, trust_env=False, timeout=loopback.LIMIT_S).is_success


def test_a_change_that_does_not_work_changes_nothing(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    """The tier is up, and the new configuration asks for it at a port where nothing listens."""
    before, tier = home.gateway_config.read_text(), replace(every_upstream["standard"].tier(), port=free_port())
    stack.replace(db, [tier])
    service.update(db, tier.name, port=tier.port)

    failed = run("configure")

    assert failed.error
    assert "The running gateway was left as it is." in failed.error
    assert home.gateway_config.read_text() == before
    assert process.find_orphans(str(home.root), candidate.NAME) == {}
    assert answers(home, "standard") == 200


def test_another_model_at_the_same_tier_leaves_the_gateway_alone(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    stack.replace(db, [replace(every_upstream["standard"].tier(), model="another", quant="int8")])

    done = run("configure")
    run("start", service="gateway")

    assert (done.result or {})["changed"] is False
    assert service.get(db, "gateway").identity == serving.identity


def test_a_gateway_that_cannot_take_over_changes_nothing(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    """Once its address is not this machine's, once its port is another's; the error names which."""
    with Load(serving.port, secrets.read(home.secrets)[secrets.MASTER]) as load:
        settings.write(home, "gateway-host", "203.0.113.7")
        errors = [run("restart", service="gateway").error or ""]
        settings.reset(home, "gateway-host")
        settings.write(home, "litellm-port", every_upstream["fast"].port)
        errors.append(run("restart", service="gateway").error or "")
        settings.write(home, "litellm-port", serving.port)

    assert "203.0.113.7 is not an address of this machine" in errors[0]
    assert f"Port {every_upstream['fast'].port}, which gateway needs, is taken by " in errors[1]
    assert errors[1].endswith(f"gateway stays on port {serving.port}.")
    assert load.failures == []
    assert settled(home, db).identity == serving.identity


def test_a_gateway_that_does_not_start_changes_nothing(
    home: Home, db: Database, run: Run, serving: service.Service, monkeypatch: pytest.MonkeyPatch
):
    program = [sys.executable, "-c", "raise SystemExit('It cannot start.')"]
    with monkeypatch.context() as patch:
        patch.setattr("tasks.plan.gateway.argv", lambda *_, **__: program)
        failed = run("restart", service="gateway")
    ledger.cancel(db, failed.id)  # its next try

    assert failed.error
    assert "A gateway with the new configuration does not start: " in failed.error
    assert settled(home, db).identity == serving.identity
    assert answers(home, "standard") == 200


def test_a_new_port_is_the_next_gateways_and_not_this_ones(
    home: Home, db: Database, run: Run, serving: service.Service
):
    settings.write(home, "litellm-port", free_port())
    asked = run("smoke_test")
    assert (asked.result or {})["endpoint"] == f"http://127.0.0.1:{serving.port}/v1"

    assert run("restart", service="gateway").state == "succeeded"

    one = settled(home, db)
    assert one.port == settings.load(home)["litellm-port"]
    assert answers(home, "standard") == 200
    assert ports.free(serving.port)


def names(db: Database) -> list[str]:
    return [each.name for each in event.of_service(db, "gateway")]


def test_a_gateway_that_was_killed_is_started_anew(home: Home, db: Database, run: Run, serving: service.Service):
    identity = lifecycle.running(serving)
    assert identity
    replaced = names(db).count("replaced")
    process.stop(identity, 0)

    assert run("restart", service="gateway", reason="gone").state == "succeeded"

    assert names(db).count("replaced") == replaced
    assert settled(home, db).generation == serving.generation + 1


def read_apart(path: Path) -> bytes:
    """Read a file in another process.

    A process that closes a file loses its locks on it (POSIX), those of SQLite too: the gateway, which opens state.db
    next, then cuts state.db-shm off, and this process dies of SIGBUS.
    """
    return subprocess.run(["cat", path], capture_output=True, check=True).stdout


def test_no_key_is_told_to_anybody(home: Home, db: Database, run: Run, serving: service.Service):
    """Not on a command line, in a log, in a row, in a unit file, nor in any file that is not for keys."""
    settings.write(home, "openrouter-key", "sk-or-v1-of-the-scan")
    run("configure")
    run("start", service="gateway")
    answers(home, "standard")
    keys = [*secrets.read(home.secrets).values(), "sk-or-v1-of-the-scan"]
    db.run("PRAGMA wal_checkpoint(TRUNCATE)")

    contents = {path: read_apart(path) for path in home.root.rglob("*") if path.is_file()}
    for path in (home.secrets, home.config, home.run / "good" / settings.GOOD):
        assert path.stat().st_mode & 0o077 == 0
        del contents[path]
    identity = process.decode(service.get(db, "gateway").identity or "")
    contents[home.root / "argv"] = " ".join(psutil.Process(identity.pid).cmdline()).encode()
    unit = autostart.describe(system=False)
    contents[home.root / "unit"] = systemd.text(unit).encode() + launchd.text(unit)
    assert any(path.name == "state.db" for path in contents)
    assert any(path.name == "gateway.log" for path in contents)
    assert [(path, key) for path, content in contents.items() for key in keys if key.encode() in content] == []


def test_a_change_of_tiers_is_proven_then_applied(
    home: Home, db: Database, run: Run, serving: service.Service, every_upstream: dict[str, Upstream]
):
    """The tier that is up answers the trial; the one that is still to come is not waited for."""
    asked = len(every_upstream["standard"].seen())
    coming = replace(every_upstream["fast"].tier(), name="coder", port=free_port())
    stack.replace(db, [every_upstream["standard"].tier(), coming])

    assert run("configure").state == "succeeded"

    assert len(every_upstream["standard"].seen()) == asked + 1
    assert process.find_orphans(str(home.root), candidate.NAME) == {}
    assert service.get(db, "gateway").identity == serving.identity
    assert answers(home, "coder") == 404
    run("start", service="gateway")
    assert service.get(db, "gateway").identity != serving.identity
    assert answers(home, "coder") == 200


MOMENTS: dict[str, Callable[[Mlxq, service.Service], object]] = {
    "handover_started": lambda mlxq, _: mlxq.one("gateway").successor,
    "on trial": lambda mlxq, _: mlxq.engines("gateway") > 1,
    "being proven": lambda mlxq, before: (
        mlxq.db.value("SELECT phase FROM jobs WHERE state = 'running'") == "proving"  # for some milliseconds
        or mlxq.one("gateway").identity != before.identity
    ),
    "taken over": lambda mlxq, before: (
        (there := socket_handover.serving_process(mlxq.home)) and there.identity != before.identity
    ),
    "replaced": lambda mlxq, before: mlxq.one("gateway").identity != before.identity,
}


@pytest.fixture(scope="module")
def worked(
    empty_database: Path, every_upstream: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mlxq]:
    """Return a home whose worker, a process, keeps up a gateway that serves the tier `standard`.

    One for all moments: each of them leaves one gateway, the right one, which is what the next begins with.
    """
    home = empty_home(tmp_path_factory.mktemp("worked"), empty_database)
    every_upstream["standard"].start()
    mlxq = Mlxq(home)
    try:
        stack.replace(mlxq.db, [every_upstream["standard"].tier()])
        mlxq.work()
        assert mlxq.ended(mlxq.put("configure")).state == "succeeded"
        mlxq.up("gateway")
        yield mlxq
    finally:
        mlxq.close()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_killed_in_between_leaves_one_gateway(worked: Mlxq, every_upstream: dict[str, Upstream], moment: str):
    """Whenever it is killed: nothing refused or cut, and the next worker ends up with the right one, started once."""
    home, before = worked.home, settled(worked.home, worked.db)
    settings.write(home, "cloud-cap-usd", str(3 + list(MOMENTS).index(moment)))

    with Load(before.port, secrets.read(home.secrets)[secrets.MASTER]) as load:
        stream = load.held_stream()
        number = worked.put("restart", service="gateway")
        until(lambda: MOMENTS[moment](worked, before))
        worked.kill_worker()
        worked.work()
        assert worked.ended(number, 180).state == "succeeded"
        every_upstream["standard"].release()
        stream.join()
        load.await_more()
    after = settled(home, worked.db)

    assert load.failures == []
    assert after.spec_hash == spec.launch_spec(worked.db, home, "gateway").spec_hash
    assert after.spec_hash != before.spec_hash
    assert "exited" not in worked.events("gateway")
    assert after.generation - before.generation <= (1 if moment in {"taken over", "replaced"} else 2)
