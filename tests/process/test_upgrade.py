"""mlxq is upgraded and taken back under load, and killed on the way: some version serves at every moment.

Real installations by uv, real environments from a package index on loopback, real workers and gateways; the engine is
scripted, and the libraries are lent (tests/support/release.py).
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hub.client import Hub
from hub.client import running as serving
from hub.model import make
from support import mounts, release, systemd
from support.autostart import KeptAlive
from support.load import Load
from support.mlxq_home import until
from support.package_index import PackageIndex, running
from support.release import User
from support.systemd import UserManager

from mlxq.autostart.unit import Unit, environment
from state import secrets
from state.db import SCHEMA_VERSION
from tasks.upgrade.record import BY_USER, Phase

pytestmark = pytest.mark.slow

LIMIT_S = 60.0
LINES = 60
DYING = """
import os as _os
_order = _os.path.join(_os.environ.get("MLXQ_HOME", "/nowhere"), "die-at")
if _os.path.exists(_order):
    import importlib as _importlib, signal as _signal
    _version, _where = open(_order).read().split(" ")
    if _version == __version__:
        _module, _, _name = _where.partition(":")
        _owner = _importlib.import_module(_module)
        for _part in _name.split(".")[:-1]:
            _owner = getattr(_owner, _part)

        def _die(*_args, **_options):
            try:
                _os.unlink(_order)
            except FileNotFoundError:
                return _real(*_args, **_options)
            _os.kill(_os.getpid(), _signal.SIGKILL)

        _real = getattr(_owner, _name.split(".")[-1])
        setattr(_owner, _name.split(".")[-1], _die)
"""
"""In both releases: the process of VERSION is killed when it first comes to MODULE:FUNCTION, which a file orders."""
OLD, NEW = "0.1.0", "0.2.0"
FORWARD = {
    "the environment is made": f"{OLD} tasks.upgrade.trial:clear",
    "the switch is written": f"{OLD} tasks.upgrade.back:ensure_guard",
    "the guard is there": f"{OLD} tasks.upgrade.installation:lead_to",
    "the link leads on": f"{OLD} tasks.runtime:Runtime.hand_over",
    "the old worker has ended": f"{OLD} tasks.worker:_become",
    "the new worker has begun": f"{NEW} tasks.worker:_owner",
    "state.db is migrated": f"{NEW} tasks.supervision.unclean_boot:handle",
    "it continues the job": f"{NEW} tasks.upgrade.switch:_await_steady",
    "the gateway is to be replaced": f"{NEW} tasks.supervision.handover:replace",
    "all are replaced": f"{NEW} tasks.upgrade.switch:_forget_others",
    "the guard looks": f"{OLD} tasks.upgrade.back:Watch.look",
}
BACKWARD = {
    "the way back is written": f"{OLD} tasks.upgrade.back:lacks_backup",
    "the link is gone": f"{OLD} tasks.upgrade.back:end_worker",
    "the worker is gone": f"{OLD} tasks.upgrade.back:restore",
}
FEW = ("state.db is migrated", "the gateway is to be replaced", "the worker is gone")
EVERY = os.environ.get("CRASH_POINTS") == "1"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageIndex]:
    served = PackageIndex()
    offer(served, tmp_path_factory.mktemp("wheels"))
    with running(served):
        yield served


def offer(index: PackageIndex, folder: Path) -> None:
    """Add the old and the new version to an index."""
    built = release.build(folder / "dist")
    edits = {"mlxq/__init__.py": lambda text: text + DYING, **release.PASSES_OVER_FIRST_LIGHT}
    index.add_hashed(
        release.release(built, folder, OLD, edits),
        release.release(built, folder, NEW, edits, newer_schema=True),
        release.lent(folder),
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Serve a model of 8 MB so slowly that its pull is not done before it is allowed more."""
    folder = tmp_path_factory.mktemp("hub")
    make(folder / "big-4bit", shard_bytes=8_000_000, shards=1)
    with serving(folder) as served:
        served.set(rate=1 << 16)
        yield served


@pytest.fixture(scope="module")
def user(
    index: PackageIndex, builtin_model: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[User]:
    """Return someone whose mlxq of the old version serves, from a tool folder that cannot be written from then on."""
    if may_mount := sys.platform == "linux" and os.geteuid() == 0:
        mounts.enter()
    made = User(tmp_path_factory.mktemp("user"), index, builtin_model.parent, {"HF_ENDPOINT": hub.endpoint})
    try:
        made.install(OLD, "--compile-bytecode")  # each process would compile what it cannot store
        with mounts.read_only(made.folder / "tools") if may_mount else nullcontext():
            made.set_up()
            yield made
            made.kill_worker()
    finally:
        made.close()


@pytest.fixture
def load(user: User) -> Iterator[Load]:
    with Load(user.ports[0], secrets.read(user.home.secrets)[secrets.MASTER]) as running_load:
        yield running_load


def assert_serves(user: User, version: str) -> None:
    """Hold that a version's worker runs and the user's program is that version."""
    until(lambda: user.worker() == ("installed" if version == OLD else version), LIMIT_S)
    assert user.version() == version
    assert user.answers() == 200
    until(lambda: ("/versions/" in _gateway_program(user)) == (version == NEW), LIMIT_S)


def _gateway_program(user: User) -> str:
    with sqlite3.connect(user.home.database) as connection:
        return connection.execute("SELECT argv FROM services WHERE name = 'gateway'").fetchone()[0]


def schema(user: User) -> int:
    with sqlite3.connect(user.home.database) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_an_upgrade_under_load_loses_nothing_and_is_taken_back(
    user: User, hub: Hub, load: Load, tmp_path: Path
) -> None:
    """A batch and a pull outlive it; an engine of which nothing changed is not restarted; the tool stays as it was."""
    before = json.loads(user.run("status", "--json").stdout)
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(_line(number) for number in range(LINES)))
    files = sorted(path for path in user.tool.rglob("*") if "__pycache__" not in path.parts)
    user.run("batch", "run", str(lines), "--tier", "standard")
    batch = json.loads(user.run("batch", "list", "--json").stdout)["batches"][0]["id"]

    user.run("pull", "slow/big-4bit", "--detach")
    user.run("upgrade")
    assert_serves(user, NEW)
    assert schema(user) == SCHEMA_VERSION + 1
    hub.set(rate=1 << 30)
    after = json.loads(user.run("status", "--json").stdout)
    pids = [{row["name"]: row["pid"] for row in report["services"]} for report in (before, after)]
    assert pids[0]["standard"] == pids[1]["standard"]
    assert pids[0]["gateway"] != pids[1]["gateway"]

    assert sorted(path for path in user.tool.rglob("*") if "__pycache__" not in path.parts) == files
    assert load.answered > 100
    assert load.failures == [], user.logs()
    load.stop()

    until(lambda: _pull(user)["state"] == "succeeded", LIMIT_S)
    assert _pull(user)["attempt"] > 1, "it was interrupted"
    until(lambda: _state(user, batch) == "completed", LIMIT_S)
    results = user.run("batch", "output", batch).stdout.splitlines()
    assert sorted(json.loads(line)["custom_id"] for line in results) == sorted(map(str, range(LINES)))


def test_the_way_back_brings_the_older_schema_back(user: User, load: Load) -> None:
    """It asks first, and names the copy."""
    upgraded(user)
    refused = user.run("upgrade", "--back", check=False)
    assert refused.returncode == 2, "it asks first, as state.db goes back too"
    told = user.run("upgrade", "--back", "--yes").stdout
    assert f"state.db is as it was in {user.home.backup(SCHEMA_VERSION)}." in told
    assert_serves(user, OLD)
    assert schema(user) == SCHEMA_VERSION
    record = user.record()
    assert record
    assert (record.phase, record.reason) == (Phase.TAKEN_BACK, BY_USER)
    assert load.failures == [], user.logs()


def test_a_sleeping_model_that_is_asked_for_before_its_next_gateway_is_there_is_loaded(user: User) -> None:
    """The gateway of the version before holds the request, though state.db has the newer schema by then."""
    back_to_old(user)
    (user.home.root / "proven").touch()
    user.run("config", "set", "tier-idle-stop", "standard=30m")
    user.run("unload", "standard")
    with ThreadPoolExecutor() as pool:
        upgrade = pool.submit(user.run, "upgrade")
        until(lambda: schema(user) == SCHEMA_VERSION + 1)
        assert "/versions/" not in _gateway_program(user), "the old one is asked"
        assert user.answers() == 200, user.logs()
        upgrade.result()
    assert_serves(user, NEW)
    user.run("config", "reset", "tier-idle-stop")


def _line(number: int) -> str:
    body = {"model": "standard", "messages": [{"role": "user", "content": "say hi"}]}
    return json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def _pull(user: User) -> dict[str, Any]:
    return next(job for job in user.jobs("pull") if job["args"]["source"].startswith("hub:"))


def _state(user: User, batch: str) -> str:
    return json.loads(user.run("batch", "show", batch, "--json").stdout)["batch"]["status"]


def test_the_unit_of_autostart_starts_the_version_that_is_used(user: User) -> None:
    """The same pid is first the old version and then the new one; after the way back the unit starts the old one."""
    back_to_old(user)
    (user.home.root / "proven").touch()
    program = [str(user.folder / "bin" / "mlxq"), "worker", "--wait"]
    unit = Unit(program, user.home, environment(user.environment, user.home), user_home=user.folder)
    user.kill_worker()
    with KeptAlive(unit) as system:
        until(lambda: user.worker() == "installed", LIMIT_S)
        pid = system.pid
        user.run("upgrade")
        assert (user.worker(), system.pid, system.starts) == (NEW, pid, 1), "launchd saw no end"
        record = user.record()
        assert record
        assert record.system
        restarted(system, user, NEW)

        user.run("upgrade", "--back", "--yes")
        assert_serves(user, OLD)
        restarted(system, user, "installed")
        assert int(user.home.worker_lock.read_text()) == system.pid, "no other worker runs beside launchd's"
    user.run("up")  # starts the worker of the tests to come


def test_systemd_keeps_the_version_that_is_used(user: User, tmp_path: Path) -> None:
    """Its worker becomes the new version under its eyes, is watched, started again, and goes back; all is real."""
    back_to_old(user)
    (user.home.root / "proven").touch()
    with systemd.running(tmp_path / "home") as manager, user.having(manager.environment):
        user.run("install")
        until(lambda: user.worker() == "installed", LIMIT_S)
        pid, alive = manager.show("MainPID"), manager.show("WatchdogTimestampMonotonic")
        user.run("upgrade")
        assert (user.worker(), manager.show("MainPID"), manager.show("NRestarts")) == (NEW, pid, "0")
        assert manager.show("SubState") == "running", "not stopping: systemd would kill it after 20 s"
        until(lambda: manager.show("WatchdogTimestampMonotonic") not in {"0", alive}, LIMIT_S)
        record = user.record()
        assert record
        assert record.system
        restarted(manager, user, NEW)

        user.run("upgrade", "--back", "--yes")
        assert_serves(user, OLD)
        until(lambda: manager.show("MainPID") == user.home.worker_lock.read_text(), LIMIT_S)
        user.run("uninstall")
        assert user.worker() is None
        assert user.answers() == 200, "services keep running"
    user.run("up")


def restarted(system: KeptAlive | UserManager, user: User, version: str) -> None:
    """Kill the worker of launchd or systemd, and hold that its next one is of a version."""
    before = system.starts
    user.kill_worker()
    until(lambda: system.starts > before and user.worker() == version, LIMIT_S)


@pytest.mark.parametrize("moment", [name for name in FORWARD if EVERY or name in FEW])
def test_some_version_serves_wherever_an_upgrade_is_killed(user: User, load: Load, moment: str) -> None:
    """The user's command continues, as does the next worker; requests are answered meanwhile."""
    back_to_old(user)
    (user.home.root / "proven").touch()
    (user.home.root / "die-at").write_text(FORWARD[moment])
    user.kill_worker()  # the next one reads the order
    began = time.monotonic()
    ran = user.run("upgrade", check=False)
    until(user.settled, LIMIT_S)
    assert not (user.home.root / "die-at").exists(), "it was killed"
    assert ran.returncode == 0, f"{ran.stderr}\n{user.logs()}"
    assert_serves(user, NEW)
    print(f"{moment}: {time.monotonic() - began:.1f} s")
    assert load.failures == [], user.logs()


@pytest.mark.parametrize("moment", [name for name in BACKWARD if EVERY or name in FEW])
def test_some_version_serves_wherever_the_way_back_is_killed(user: User, load: Load, moment: str) -> None:
    upgraded(user)
    (user.home.root / "die-at").write_text(BACKWARD[moment])
    began = time.monotonic()
    user.run("upgrade", "--back", "--yes")
    assert not (user.home.root / "die-at").exists(), "it was killed"
    assert_serves(user, OLD)
    print(f"{moment}: {time.monotonic() - began:.1f} s")
    assert load.failures == [], user.logs()


def upgraded(user: User) -> None:
    """Have the new version serve, also where this test runs alone."""
    if user.worker() != NEW:
        (user.home.root / "proven").touch()
        user.run("upgrade")


def back_to_old(user: User) -> None:
    if user.worker() == NEW:
        user.run("upgrade", "--back", "--yes")
    assert_serves(user, OLD)
