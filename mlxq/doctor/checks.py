"""The checks of `mlxq doctor`, each bounded in time; rules.py grades what they find."""

from __future__ import annotations

import errno
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
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from catalog.engines import best_for, reuses
from catalog.intent import AGENTS
from mlxq import autostart, prompt_reuse, service_status, status_report
from mlxq.doctor import rules, thunderbolt
from mlxq.doctor.rules import Finding
from state import facts, files, secrets, settings, stack, wakeup, worker
from state import service as services
from state.db import Database, read_database
from state.errors import DiskUnavailable, MlxqError, NewerState, NotSetUp, StateDamaged, StateUnavailable
from state.notify import targets
from state.paths import Home
from state.ports import listing as listening
from state.stack import Tier
from tasks import config_problems, worker_status
from tasks.config_problems import of_targets
from tasks.engines import installed, serving
from tasks.system import free_space, hardware, memory, ports, process, proxies, tool
from tasks.upgrade import newer
from tasks.weights import model_dir

LIMIT_S = 4.5
"""Seconds for all checks together; one that is slower is reported as such."""
HUB_S = 3.0
DISK_S = 1.5
"""Seconds for one folder of models."""
LATE = "timed out: the machine is busy, or something hangs"
PACKAGES = ("vllm-mlx", "mlx", "litellm", "huey", "mlxq")
PRIVATE = (
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "secrets.env",
    "keys.json",
    "config.yaml",
    "gateway.yaml",
    "tls",
    "tls/ca.key",
    "tls/server.pem",
)
Check = Callable[[Home], Sequence[Finding | None]]


def run_checks(home: Home) -> list[Finding]:
    """Run all checks at the same time, for LIMIT_S seconds at most; return their findings, in the order of CHECKS."""
    until = time.monotonic() + LIMIT_S
    findings: dict[str, list[Finding]] = {}

    def run(area: str, check: Check) -> None:
        findings[area] = _guarded(area, check, home)

    threads = [threading.Thread(target=run, args=item, daemon=True, name=f"check-{item[0]}") for item in CHECKS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [finding for area in CHECKS for finding in findings.get(area, [rules.warning(area, LATE)])]


def _guarded(area: str, check: Check, home: Home) -> list[Finding]:
    """Run one check; an error is a finding too."""
    try:
        return [finding for finding in check(home) if finding]
    except (NewerState, StateDamaged, StateUnavailable) as problem:
        return [_unreadable(area, problem)]
    except MlxqError as problem:
        return [rules.error(area, problem.message.rstrip("."), problem.hint)]
    except subprocess.TimeoutExpired:
        return [rules.warning(area, LATE)]
    except OSError as problem:
        return [rules.warning(area, f"could not be checked: {problem}")]


def _unreadable(area: str, problem: MlxqError) -> Finding:
    """Return the finding of an unreadable state.db: an error once, under its area, and never with doctor as hint."""
    if area != "database":
        return rules.warning(area, "unknown: state.db cannot be read")
    return rules.error(area, problem.message.rstrip("."), None if problem.hint == "mlxq doctor" else problem.hint)


def _python(_: Home) -> list[Finding]:
    translated = sys.platform == "darwin" and _printed("sysctl", "-n", "sysctl.proc_translated").strip() == "1"
    return [rules.python(sys.version_info[:3], sys.platform, platform.machine(), translated=translated)]


def _sqlite(_: Home) -> list[Finding]:
    return [rules.sqlite(sqlite3.sqlite_version_info)]


def _mlx(_: Home) -> list[Finding | None]:
    """Ask MLX for its device in a child process: importing it costs memory and may hang."""
    device = hardware.mlx_info(_printed(sys.executable, "-P", "-c", hardware.ASK_MLX))
    macos = _macos()
    accelerators = rules.neural_accelerators(str(device.get("device_name", "")), macos) if macos else None
    return [rules.back_end(sys.platform, device), accelerators]


def _macos() -> tuple[int, ...]:
    """Return the version of macOS; nothing elsewhere."""
    return tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdecimal())


def _thunderbolt(home: Home) -> list[Finding | None]:
    """Look whether MLX's ranks on several Macs could use RDMA."""
    if sys.platform != "darwin":
        return []
    ports = thunderbolt.speeds(_printed("system_profiler", "SPThunderboltDataType", "-json"))
    switch, devices = _printed("rdma_ctl", "status"), thunderbolt.devices(_printed("ibv_devices"))
    wanted = bool(settings.load(home)["tier-ranks"])
    return [thunderbolt.jaccl(ports, _macos(), switch, devices, wanted=wanted)]


def _packages(_: Home) -> list[Finding]:
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    folders = {Path(entry) for entry in sys.path if entry.endswith("site-packages")}
    files = {file.name: _text(file) for folder in folders for file in folder.glob("*.pth")}
    return [*rules.packages(versions), *rules.start_files(files)]


def _network(home: Home) -> list[Finding | None]:
    values = settings.load(home)
    return [rules.network(values["gateway-host"], encrypted=values["gateway-tls"]), *_nodes(home)]


def _nodes(home: Home) -> list[Finding]:
    """Look at what is known of the other nodes of a fleet."""
    from mlxq.fleet import report

    try:
        with closing(read_database(home)) as db:
            return [rules.node(entry.name, report.problem(entry)) for entry in report.collect(db).nodes]
    except (NotSetUp, NewerState, StateDamaged, StateUnavailable):  # the check of the database says so
        return []


def _newer(home: Home) -> list[Finding | None]:
    try:
        with closing(read_database(home)) as db:
            return [rules.newer(newer.found(db))]
    except (NotSetUp, NewerState, StateDamaged, StateUnavailable):  # the check of the database says so
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _hub(_: Home) -> list[Finding | None]:
    """Ask the Hub who we are: one response shows that it is in reach, whether the token is valid, and its time."""
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
    """Return the user's token for the Hub, as huggingface_hub finds it."""
    from huggingface_hub import get_token

    return get_token()


def _who_am_i(endpoint: str, token: str | None) -> tuple[int | None, float | None]:
    """Return the HTTP status and the server's time in unix seconds; None for what did not come."""
    from email.utils import parsedate_to_datetime

    import httpx

    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        response = httpx.get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=HUB_S)
        date = response.headers.get("date")
        return response.status_code, parsedate_to_datetime(date).timestamp() if date else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None, None


def _disk(home: Home) -> list[Finding]:
    """Check the free space of each disk that mlxq writes to; a folder of models that is away has none to tell of."""
    models = settings.load(home).models(home)
    problems = _folder_problems(home, models)
    findings = [rules.error("disk", problem.message.rstrip("."), problem.hint) for problem in problems.values()]
    folders = {"mlxq": home.root} if models in problems else {"models": models, "mlxq": home.root}
    if "models" in folders and _existing(models).stat().st_dev == _existing(home.root).stat().st_dev:
        del folders["mlxq"]
    free = {name: free_space.available(_existing(folder)) for name, folder in folders.items()}
    return findings + [rules.disk(f"{name} in {folders[name]}", free[name]) for name in folders]


def _folder_problems(home: Home, models: Path) -> dict[Path, DiskUnavailable]:
    """Return what is wrong with the folder for models, and with others that tiers serve from."""
    try:
        with closing(read_database(home)) as db:
            folders = {models} | {Path(e.weights).parent for e in stack.engines_of(stack.tiers(db)) if e.weights}
            recorded = [model_dir.recorded(db, folder) for folder in sorted(folders)]
            problems = {folder.path: model_dir.problem_of(folder, DISK_S) for folder in recorded}
            if problems[models] is None:
                problems[models] = model_dir.unwritable(models, DISK_S)
    except (NotSetUp, NewerState, StateDamaged, StateUnavailable):
        return {}
    return {folder: problem for folder, problem in problems.items() if problem}


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _memory(home: Home) -> list[Finding | None]:
    now = memory.memory()
    findings: list[Finding | None] = [rules.memory(now.total, now.available, now.pressure, now.swap_used)]
    if home.database.exists():
        with closing(read_database(home)) as db:
            machine, engines = facts.get(db, "machine"), stack.engines(db)
        limit, usable = machine.get("wired_limit_bytes", 0), machine.get("usable_bytes", 0)
        findings.append(rules.wired(now.total, limit, usable, sum(engine.memory_bytes for engine in engines)))
    return findings


def _power(_: Home) -> list[Finding]:
    if sys.platform != "darwin":
        return []
    return rules.power(rules.parse_pmset(_printed("pmset", "-g")), hardware.power(_printed("pmset", "-g", "batt")))


def _printed(*command: str) -> str:
    return tool.run(*command, timeout_s=LIMIT_S).stdout


def _home(home: Home) -> list[Finding]:
    if not home.root.exists():
        return [rules.passed("home", f"{home.root} does not exist yet (created by `mlxq setup`)")]
    private = [home.root, home.logs, home.run, *(home.root / name for name in PRIVATE)]
    findings = rules.modes([(str(path), mode(path)) for path in private if path.exists()])
    for path in stale_sockets(home):
        findings.append(rules.warning("home", f"{path} is a stale socket", "mlxq doctor --fix", fix="sockets"))
    if reason := files.unwritable(home.root):
        findings.append(
            rules.error("home", f"{home.root} cannot be written: {reason}", f"ls -ld {home.root}; df -h {home.root}")
        )
    findings += map(rules.config, config_problems.listing(home))
    secrets.read(home.secrets)
    return findings


def mode(path: Path) -> int:
    """Return the permission bits of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def stale_sockets(home: Home) -> list[Path]:
    """Return the sockets without a listener; none while a worker is running or starting."""
    if files.locked(home.worker_lock):
        return []
    return [path for path in wakeup.folder(home).glob("*.sock") if not _has_listener(path)]


def _has_listener(path: Path) -> bool:
    """Return whether a process listens at a socket; connecting sends nothing.

    The gateway's is a stream and the worker's takes datagrams: a socket of the other type refuses with EPROTOTYPE.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(str(path))
    except ConnectionRefusedError:
        return False
    except OSError as problem:
        return problem.errno == errno.EPROTOTYPE
    return True


def _database(home: Home) -> list[Finding]:
    """Read every page of state.db, as SQLite's quick_check does."""
    try:
        with closing(read_database(home)) as db:
            result = db.value("PRAGMA quick_check(1)")
    except NotSetUp:
        return [rules.passed("database", "no database yet (created by `mlxq setup`)")]
    except StateDamaged as problem:
        result = problem.message
    if result == "ok":
        return [rules.passed("database", f"{home.database} is intact")]
    return [rules.error("database", f"{home.database} is damaged: {result}", "mlxq doctor --fix", fix="database")]


def _worker(home: Home) -> list[Finding]:
    if not home.database.exists():
        return []
    with closing(read_database(home)) as db:
        state, last = worker_status.read(db), worker.current(db)
        requested = any(row.desired == "up" for row in services.listing(db))
    reason = files.unwritable(home.root) if state is worker_status.WorkerState.HUNG else None
    return [rules.worker(state, last.pid if last else None, services=requested, unwritable=reason)]


def _services(home: Home) -> list[Finding]:
    """Check the services that are requested to run: by their rows while a worker runs, else by process and port."""
    if not home.database.exists():
        return []
    with closing(read_database(home)) as db:
        watched = worker_status.read(db) is worker_status.WorkerState.ALIVE
        rows = [row for row in services.listing(db) if row.desired == "up"]
    judge = service_status.of_row if watched else status_report.check
    return [rules.service(row.name, judge(row), row.cause, row.hint) for row in rows]


def _reuse(home: Home) -> list[Finding | None]:
    """Check what each tier's second turn did not read again, as the smoke test wrote it down."""
    if not home.database.exists():
        return []
    with closing(read_database(home)) as db:
        tiers = stack.tiers(db)
        shares = prompt_reuse.of_tiers(db, tiers, {row.name: row for row in services.listing(db)})
        agents = facts.get(db, "stack").get("asked", {}).get("intent") == AGENTS
        return [
            rules.reuse(tier.name, shares[tier.name], agents=agents, remedy=_remedy(db, home, tier))
            for tier in tiers
            if tier.name in shares
        ]


def _remedy(db: Database, home: Home, tier: Tier) -> str:
    """Return what has a tier's prompts read once: the engine that does so for its kind of model, if there is one."""
    kind, row = serving.facts_of(tier.engine, home).kind, services.find(db, tier.engine.name)
    best = best_for(kind)
    if not reuses(best, kind) or (row and row.release.startswith(best)):
        return f"mlxq bench {tier.name}"
    engines = {installation.engine for installation in installed.used(db, home)}
    return f"mlxq engine use {settings.AUTO}" if best in engines else f"mlxq engine install {best}"


def _autostart(_: Home) -> list[Finding]:
    unit = autostart.describe(system=False)
    statuses = [autostart.status(entry) for entry in (unit, replace(unit, system=True))]
    best = next((status for status in statuses if status.installed or status.state), statuses[0])
    return [rules.autostart(best)]


def _ports(home: Home) -> list[Finding]:
    proxied = rules.proxy(proxies.exceptions())
    if not home.database.exists():
        return [*proxied, *(_port(None, name, number) for name, number in _auxiliary_ports(home).items())]
    with closing(read_database(home)) as db:
        return [*proxied, *(_port(db, name, number) for name, number in _service_ports(db).items())]


def _auxiliary_ports(home: Home) -> dict[str, int]:
    """Return the ports of the services beside the tiers; one that is switched off has none."""
    chosen = settings.load(home)
    numbers = {"gateway": chosen["litellm-port"], "page": chosen["page-port"]}
    numbers["front"] = chosen["front-port"] if chosen["front"] else 0
    return {name: number for name, number in numbers.items() if number}


def _service_ports(db: Database) -> Mapping[str, int]:
    return {name: number for name, number in listening(db).items() if number}


def _port(db: Database | None, name: str, number: int) -> Finding:
    holder = None if ports.free(number) else ports.holder(number)
    row = services.find(db, name) if db else None
    ours = bool(holder and row and row.identity and holder.pid in _pids(row.identity))
    program = f"{holder.name} (pid {holder.pid})" if holder and holder.pid else "another program" if holder else None
    kind = name if name in {"gateway", "page", "front"} else "engine"
    return rules.port(name, number, program, ports.cures(name, kind, number) if program else "", ours=ours)


def _pids(identity: str) -> set[int]:
    return {member.pid for member in process.members(process.decode(identity))}


def _notify(home: Home) -> list[Finding]:
    """Check that notifications reach their targets."""
    saved = targets.read(targets.file(home))
    if not saved or not home.database.exists():
        return []
    with closing(read_database(home)) as db:
        problems = [rules.warning("notify", problem.message.rstrip("."), problem.hint) for problem in of_targets(db)]
    return problems or [rules.passed("notify", f"notifications reach {', '.join(saved)}")]


CHECKS: Mapping[str, Check] = {
    "python": _python,
    "sqlite": _sqlite,
    "mlx": _mlx,
    "thunderbolt": _thunderbolt,
    "packages": _packages,
    "hub": _hub,
    "disk": _disk,
    "memory": _memory,
    "power": _power,
    "home": _home,
    "database": _database,
    "worker": _worker,
    "services": _services,
    "reuse": _reuse,
    "notify": _notify,
    "autostart": _autostart,
    "ports": _ports,
    "network": _network,
    "mlxq": _newer,
}
"""Every check, by the area it is reported under."""
