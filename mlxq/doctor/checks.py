"""The looks that `mlxq doctor` takes, each bounded in time; what they mean is judged in checkup.py."""

from __future__ import annotations

import os
import platform
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path

from mlxq import autostart
from mlxq.doctor import rules
from mlxq.doctor.rules import Finding
from state import facts, keys, lock, secrets, settings, stack, wakeup, worker
from state import service as services
from state.db import Database, read_database
from state.errors import MlxqError, NewerState, NotSetUp, StateDamaged, StateUnavailable
from state.paths import Home
from state.ports import listing as listening
from tasks import worker_status
from tasks.system import hardware, memory, ports, process

LIMIT_S = 4.5
"""What the whole examination may take; a look that is slower is told as such."""
HUB_S = 3.0
LATE = "this could not be seen in time: the machine is busy, or something hangs"
PACKAGES = ("vllm-mlx", "mlx", "litellm", "huey", "mlxq")
PRIVATE = ("state.db", "state.db-wal", "state.db-shm", "secrets.env", "keys.json", "config.yaml", "gateway.yaml")
Check = Callable[[Home], Sequence[Finding | None]]


def run_checks(home: Home, *, limit_s: float = LIMIT_S) -> list[Finding]:
    """Take every look side by side and give what was found, in the order of LOOKS."""
    until = time.monotonic() + limit_s
    told: dict[str, list[Finding]] = {}

    def take(area: str, look: Check) -> None:
        told[area] = _careful(area, look, home)

    threads = [threading.Thread(target=take, args=each, daemon=True, name=f"look-{each[0]}") for each in CHECKS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [finding for area in CHECKS for finding in told.get(area, [rules.warning(area, LATE)])]


def _careful(area: str, look: Check, home: Home) -> list[Finding]:
    """Take one look; what refuses to be looked at is a finding too."""
    try:
        return [finding for finding in look(home) if finding]
    except (NewerState, StateDamaged, StateUnavailable) as problem:
        return [_shut(area, problem)]
    except MlxqError as problem:
        return [rules.error(area, problem.message.rstrip("."), problem.hint)]
    except subprocess.TimeoutExpired:
        return [rules.warning(area, LATE)]
    except OSError as problem:
        return [rules.warning(area, f"this could not be seen: {problem}")]


def _shut(area: str, problem: MlxqError) -> Finding:
    """Tell of a state.db that nobody can read once, where it belongs; the doctor sends nobody to the doctor."""
    if area != "database":
        return rules.warning(area, "not known: state.db cannot be read")
    return rules.error(area, problem.message.rstrip("."), None if problem.hint == "mlxq doctor" else problem.hint)


def _python(_: Home) -> list[Finding]:
    return [rules.python(sys.version_info[:3], sys.platform, platform.machine())]


def _sqlite(_: Home) -> list[Finding]:
    return [rules.sqlite(sqlite3.sqlite_version_info)]


def _mlx(_: Home) -> list[Finding]:
    """Ask MLX for its device, in a child: importing it costs memory and may hang."""
    return [rules.back_end(sys.platform, hardware.mlx_info(_printed(sys.executable, "-P", "-c", hardware.ASK_MLX)))]


def _packages(_: Home) -> list[Finding]:
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    folders = {Path(each) for each in sys.path if each.endswith("site-packages")}
    files = {file.name: _text(file) for folder in folders for file in folder.glob("*.pth")}
    return [*rules.packages(versions), *rules.start_files(files)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _hub(_: Home) -> list[Finding | None]:
    """Ask the Hub who we are: one answer tells reach, token and time."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return [rules.hub(endpoint, None, token=False, offline=True)]
    token = hub_token()
    status, date = _who_am_i(endpoint, token)
    return [
        rules.hub(endpoint, status, token=token is not None, offline=False),
        rules.clock(None if date is None else time.time() - date),
    ]


def hub_token() -> str | None:
    """Give the person's token for the Hub, as huggingface_hub finds it."""
    from huggingface_hub import get_token

    return get_token()


def _who_am_i(endpoint: str, token: str | None) -> tuple[int | None, float | None]:
    """Give the HTTP status and the server's time in unix seconds; None for what did not come."""
    from email.utils import parsedate_to_datetime

    import httpx

    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=HUB_S)
        date = answer.headers.get("date")
        return answer.status_code, parsedate_to_datetime(date).timestamp() if date else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None, None


def _disk(home: Home) -> list[Finding]:
    import shutil

    places = {"mlxq": home.root, "models": settings.load(home).models(home)}
    free = {name: shutil.disk_usage(_existing(place)).free for name, place in places.items()}
    same = _existing(places["mlxq"]).stat().st_dev == _existing(places["models"]).stat().st_dev
    shown = ["models"] if same else ["models", "mlxq"]
    return [rules.disk(f"{name} in {places[name]}", free[name]) for name in shown]


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _memory(home: Home) -> list[Finding | None]:
    now = memory.memory()
    found: list[Finding | None] = [rules.memory(now.total, now.available, now.pressure, now.swap_used)]
    if home.database.exists():
        with closing(read_database(home)) as db:
            machine, tiers = facts.get(db, "machine"), stack.tiers(db)
        limit, usable = machine.get("wired_limit_bytes", 0), machine.get("usable_bytes", 0)
        found.append(rules.wired(now.total, limit, usable, sum(tier.memory_bytes for tier in tiers)))
    return found


def _power(_: Home) -> list[Finding]:
    if sys.platform != "darwin":
        return []
    said = _printed("pmset", "-g")
    return rules.power(rules.parse_pmset(said), hardware.power(_printed("pmset", "-g", "batt")))


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S).stdout


def _home(home: Home) -> list[Finding]:
    if not home.root.exists():
        return [rules.passed("home", f"{home.root} is not there yet")]
    places = [home.root, home.logs, home.run, *(home.root / name for name in PRIVATE)]
    found = rules.modes([(str(path), mode(path)) for path in places if path.exists()])
    for path in stale_sockets(home):
        found.append(rules.warning("home", f"{path} is nobody's", "mlxq doctor --fix", mend="sockets"))
    settings.load(home)
    secrets.read(home.secrets)
    keys.read(keys.place(home))
    return found


def mode(path: Path) -> int:
    """Give the permission bits of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def stale_sockets(home: Home) -> list[Path]:
    """Give the sockets at which nobody listens any more; none while a worker lives or starts."""
    if lock.held(home.worker_lock):
        return []
    return [path for path in wakeup.folder(home).glob("*.sock") if not _listened(path)]


def _listened(path: Path) -> bool:
    """Tell whether a process is behind a socket; connecting sends nothing."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as trial:
            trial.connect(str(path))
    except ConnectionRefusedError:
        return False
    return True


def _database(home: Home) -> list[Finding]:
    """Read every page of state.db, as SQLite's quick_check does."""
    try:
        with closing(read_database(home)) as db:
            said = db.value("PRAGMA quick_check(1)")
    except NotSetUp:
        return [rules.passed("database", "there is none yet; `mlxq setup` makes it")]
    except StateDamaged as problem:
        said = problem.message
    if said == "ok":
        return [rules.passed("database", f"{home.database} is whole")]
    return [rules.error("database", f"{home.database} is damaged: {said}", "mlxq doctor --fix", mend="database")]


def _worker(home: Home) -> list[Finding]:
    if not home.database.exists():
        return []
    with closing(read_database(home)) as db:
        felt, last = worker_status.read(db), worker.current(db)
        wanted = any(row.desired == "up" for row in services.listing(db))
    return [rules.worker(felt, last.pid if last else None, services=wanted)]


def _unit(_: Home) -> list[Finding]:
    found = [autostart.status(system=each) for each in (False, True)]
    best = next((one for one in found if one["installed"]), found[0])
    return [
        rules.unit(
            installed=bool(best["installed"]),
            loaded=bool(best["loaded"]),
            path=str(best["path"]),
            says=str(best["says"]),
        )
    ]


def _ports(home: Home) -> list[Finding]:
    if not home.database.exists():
        return [_port(None, name, number) for name, number in _around(home).items()]
    with closing(read_database(home)) as db:
        return [_port(db, name, number) for name, number in _wanted_ports(db).items()]


def _around(home: Home) -> dict[str, int]:
    """Give the ports of what runs beside the engines; a page that is switched off has none."""
    found = settings.load(home)
    told = {"gateway": found["litellm-port"], "page": found["page-port"]}
    return {name: number for name, number in told.items() if number}


def _wanted_ports(db: Database) -> Mapping[str, int]:
    return {name: number for name, number in listening(db).items() if number}


def _port(db: Database | None, name: str, number: int) -> Finding:
    holder = None if ports.free(number) else ports.holder(number)
    row = services.find(db, name) if db else None
    ours = bool(holder and row and row.identity and holder.pid in _pids(row.identity))
    said = f"{holder.name} (pid {holder.pid})" if holder and holder.pid else "another program" if holder else None
    return rules.port(name, number, said, ours=ours)


def _pids(identity: str) -> set[int]:
    return {one.pid for one in process.members(process.decode(identity))}


CHECKS: Mapping[str, Check] = {
    "python": _python,
    "sqlite": _sqlite,
    "mlx": _mlx,
    "packages": _packages,
    "hub": _hub,
    "disk": _disk,
    "memory": _memory,
    "power": _power,
    "home": _home,
    "database": _database,
    "worker": _worker,
    "service": _unit,
    "ports": _ports,
}
"""Every look, by the area it is told under."""
