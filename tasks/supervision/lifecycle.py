"""How a service is started, adopted, stopped and buried. Effects; what they should be is decided in tasks.plan.

One process of a service at a time: every way in goes through `hold`. The wish to start is written before the
process exists, its identity after, and a process found with our marks and no row is adopted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from state import errors, facts, safe_mode, secrets, service, settings, stack, weights
from state import keys as app_keys
from state.db import Database
from state.errors import EngineFailed, MlxqError, NotFound, NotSetUp, PortTaken
from state.paths import Home
from state.service import Service, ServiceEvent, State
from tasks.plan import engine, exit_causes, gateway, health, page, restart
from tasks.plan.exit_causes import Cause
from tasks.plan.safe_mode import MOST, reduced
from tasks.supervision import probe, socket_handover
from tasks.system import memory, ports, process
from tasks.system.process import Identity

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL; engine and gateway end their drains before."""
HUNG_GRACE_S = 1.0
"""Likewise for one that hangs: it has nothing to drain."""
LOG_TAIL_LINES = 16 * 1024
"""Bytes of the log that are searched for a cause."""
TOKEN_S = 120.0
"""The first answer of a fresh engine may compile and page in its whole model."""
GATEWAY_START_S = 120.0
SILENCE_S = 30.0
"""How long one that may have taken over may take to say so: to end it by mistake would leave nobody to serve."""
PAGE_START_S = 30.0


@dataclass(frozen=True)
class LaunchSpec:
    """All that starting a service takes."""

    argv: list[str]
    environment: Callable[[int], dict[str, str]]
    """generation -> the child's whole environment, keys included; never stored."""
    spec_hash: str
    """Changes when a running process would no longer be what is wanted."""
    port: int
    """Where it will listen."""
    start_limit_s: float


def launch_spec(db: Database, home: Home, name: str) -> LaunchSpec:
    """Give how `name` is to be started now. Raises NotFound, NotSetUp, Damaged."""
    if name == page.SERVICE:
        return _page(home)
    keys = secrets.ensure(home.secrets)
    return gateway_plan(db, home, home.gateway_config) if name == gateway.SERVICE else _engine(db, home, keys, name)


def _engine(db: Database, home: Home, keys: dict[str, str], name: str) -> LaunchSpec:
    tier = reduced(stack.tier(db, name), safe_mode.of(db, name).level)
    if not tier.weights or not Path(tier.weights).is_dir():
        raise NotSetUp(f"The weights of tier {name} ({tier.model}) are not here.", hint="mlxq setup")
    argv, backend = engine.argv(tier, sys.executable), _backend(db)

    def environment(generation: int) -> dict[str, str]:
        return engine.environment(
            tier,
            base=os.environ,
            home=str(home.root),
            tier_key=keys[secrets.TIER],
            backend=backend,
            generation=generation,
        )

    size = sum(file.stat().st_size for file in Path(tier.weights).glob("*.safetensors"))
    spec_hash = _spec_hash(argv, environment(0), "vllm-mlx")
    return LaunchSpec(argv, environment, spec_hash, tier.port, health.start_limit_s(size))


def gateway_plan(db: Database, home: Home, config: Path) -> LaunchSpec:
    """Give how a gateway is to be started with `config`.

    Raises NotSetUp without a configuration, UsageProblem where the settings do not go together, Damaged.
    """
    if not config.exists():
        raise NotSetUp("The gateway has no configuration yet.", hint="mlxq setup")
    found, keys = settings.load(home), secrets.ensure(home.secrets)
    app_keys.admit(app_keys.place(home), found["gateway-host"])
    port: int = found["litellm-port"]
    argv = gateway.argv(sys.executable, str(config), port, host=found["gateway-host"])
    cloud = {secrets.CLOUD: found["openrouter-key"]} if found["openrouter-key"] else {}

    def environment(generation: int) -> dict[str, str]:
        return gateway.environment(
            {**keys, **cloud},
            base=os.environ,
            home=str(home.root),
            backend=_backend(db),
            generation=generation,
            cloud_cap_usd=found["cloud-cap-usd"],
        )

    spec_hash = _spec_hash([*argv, config.read_text()], environment(0), "litellm")
    return LaunchSpec(argv, environment, spec_hash, port, GATEWAY_START_S)


def _page(home: Home) -> LaunchSpec:
    port: int = settings.load(home)["page-port"]
    if not port:
        raise NotSetUp("The page is switched off.", hint="mlxq config reset page-port")
    argv = page.argv(sys.executable, port)

    def environment(generation: int) -> dict[str, str]:
        return page.environment(base=os.environ, home=str(home.root), generation=generation)

    return LaunchSpec(argv, environment, _spec_hash(argv, environment(0), "starlette"), port, PAGE_START_S)


def _spec_hash(argv: list[str], environment: dict[str, str], package: str) -> str:
    """Hash what a process is made of; what merely leaks in from the worker's environment does not count."""
    ours = {key: value for key, value in environment.items() if key not in engine.KEPT}
    text = json.dumps([argv, ours, version(package), version("mlxq")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _backend(db: Database) -> str:
    machine: dict[str, str] = facts.get(db, "machine") or {}
    return machine.get("backend") or ("metal" if sys.platform == "darwin" else "cpu")


_held: dict[str, threading.Lock] = {}


@contextlib.contextmanager
def hold(name: str, check: Callable[[], None]) -> Generator[None]:
    """Be the only one in this worker that starts or stops `name`; `check` may raise while waiting."""
    lock = _held.setdefault(name, threading.Lock())
    while not lock.acquire(timeout=0.2):
        check()
    try:
        yield
    finally:
        lock.release()


def held(name: str) -> bool:
    """Tell whether a job of this worker starts or stops `name` at the moment."""
    lock = _held.get(name)
    return lock is not None and lock.locked()


def identity(one: Service) -> Identity | None:
    """Give the recorded process, or None."""
    return process.decode(one.identity) if one.identity else None


def running(one: Service) -> Identity | None:
    """Give the recorded process when it lives, or None."""
    found = identity(one)
    return found if found and process.alive(found) else None


def this_boot(one: Service) -> bool:
    """Tell whether the machine has not been restarted since the service was last started; True when it never was."""
    marked = one.identity or one.shim
    return marked is None or process.decode(marked).boot == process.boot()


def spawn(db: Database, home: Home, name: str, plan: LaunchSpec) -> Service:
    """Start the process and record it. Raises PortTaken, MlxqError; the caller holds the service."""
    if not adopt_orphan(db, home, service.get(db, name), plan):
        generation = service.request_start(db, name, plan.argv, plan.spec_hash, plan.port)
        assert generation is not None, "a service that is held and down can be started"
        _free_port(service.get(db, name))
        write_start_marker(home.log(name), f"{name}, start {generation}")
        spawned = process.spawn(plan.argv, plan.environment(generation), home.log(name), home.run, name)
        _record(db, name, ServiceEvent.SPAWNED, spawned.engine, spawned.shim)
    return service.get(db, name)


def _record(db: Database, name: str, step: ServiceEvent, found: Identity, shim: Identity | None) -> None:
    named = process.encode(shim) if shim else None
    service.apply(db, name, step, identity=process.encode(found), shim=named, started_at=db.now())


def adopt_orphan(db: Database, home: Home, one: Service, plan: LaunchSpec) -> bool:
    """Take over the process of a start that was never recorded; end every other one of this service."""
    for shim in process.find_shims(str(home.root), one.name):
        process.end_barren(shim)
    adopted = False
    for orphan, generation in _strays(home, one).items():
        fits = one.state == State.STARTING and generation == one.generation and one.spec_hash == plan.spec_hash
        if fits and not adopted:
            _record(db, one.name, ServiceEvent.ADOPTED, orphan, process.shim(orphan))
            adopted = True
        else:
            process.stop(orphan, GRACE_S)
    return adopted


def _free_port(one: Service) -> None:
    """Raise PortTaken when somebody has the port; whoever it is, is named and left alone."""
    if not ports.free(one.port):
        raise port_taken(one)


def may_move(one: Service, plan: LaunchSpec) -> None:
    """Raise PortTaken when a running service shall listen elsewhere, and somebody has that port."""
    if plan.port != one.port and not ports.free(plan.port):
        problem = port_taken(replace(one, port=plan.port))
        problem.done = f"It was left alone, and {one.name} goes on at port {one.port}."
        raise problem


def port_taken(one: Service) -> PortTaken:
    """Give the error that names who has the port of a service."""
    holder = ports.holder(one.port)
    who = f"{holder.name} (pid {holder.pid})" if holder and holder.pid else "another program"
    return PortTaken(
        f"Port {one.port}, which {one.name} needs, is taken by {who}.",
        done="It was left alone.",
        hint=f"mlxq config set {PORTS[one.kind]} PORT",
    )


PORTS = {"engine": "tier-port-base", "gateway": "litellm-port", "page": "page-port"}
"""The setting that says where each kind of service listens."""


def port_hijacked(one: Service, found: Identity) -> bool:
    """Tell whether somebody else listens on the port of a service that runs: it was quicker than the service."""
    holder = ports.holder(one.port)
    return holder is not None and holder.identity not in process.members(found)


def write_start_marker(log: Path, text: str) -> None:
    """Mark in the log where something begins: what was written before it is no cause of what comes after."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
    with process.appended(log) as descriptor:
        os.write(descriptor, f"{START_MARKER}{at} {text}\n".encode())


START_MARKER = "=== mlxq: "


def log_tail(log: Path) -> str:
    """Give what the latest start wrote last, at most 16 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_LINES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.rpartition(START_MARKER)[2]


def ready(home: Home, one: Service) -> bool:
    """Tell whether the service takes requests: port, model list, and one token. Raises EngineFailed."""
    if one.kind == "gateway":
        return probe.gateway_ready(one.port)
    if one.kind == "page":
        return probe.answers(one.port, page.HEALTH)
    if not probe.listening(one.port):
        return False
    key = secrets.read(home.secrets).get(secrets.TIER, "")
    if one.name not in probe.models(one.port, key, 10.0):
        raise EngineFailed(f"It does not serve {one.name}.")
    probe.one_token(one.port, key, one.name, TOKEN_S)
    return True


def mark_ready(db: Database, one: Service) -> None:
    """Write down that a service is ready, what it weighs, and that its weights load."""
    found = identity(one)
    weight = memory.resident(found) if found else None
    now = db.now()
    service.apply(
        db,
        one.name,
        ServiceEvent.BECAME_READY,
        fence=one.generation,
        ready_at=now,
        memory_bytes=weight,
        next_try_at=None,
    )
    if one.kind == "engine":
        with contextlib.suppress(NotFound):  # the stack was changed meanwhile
            weights.loaded(db, stack.tier(db, one.name).weights)


def stop(db: Database, home: Home, one: Service, grace_s: float = GRACE_S) -> None:
    """End the service's process, whatever it does, and write down that it is down."""
    service.apply(db, one.name, ServiceEvent.STOPPING)
    found = identity(one)
    if found:
        process.stop(found, grace_s)
    for stray in _strays(home, one):
        process.stop(stray, grace_s)
    _mark_stopped(db, one)


def _mark_stopped(db: Database, one: Service) -> None:
    """Write down, once, that a service is down as it was told to be."""
    gone: dict[str, None] = dict.fromkeys(("identity", "shim", "next_try_at", "memory_bytes", "successor"))
    with db.transaction():
        if service.get(db, one.name).state != State.STOPPED:
            service.apply(db, one.name, ServiceEvent.STOPPED, fence=one.generation, **gone)


def drain(db: Database, one: Service) -> Identity | None:
    """Have an engine take no more requests and end after its last answer; give its process, None when none serves."""
    if one.kind == "engine":
        service.apply(db, one.name, ServiceEvent.DRAIN_STARTED, fence=one.generation)
    one = service.get(db, one.name)
    found = running(one) if one.state == State.DRAINING else None
    if found:
        process.send(found, signal.SIGUSR2)
    return found


def _strays(home: Home, one: Service) -> dict[Identity, int]:
    """Give the processes that bear a service's marks: identity -> generation.

    Those that were replaced and still answer are left out, unless the service is not wanted any more.
    """
    spared = set(leaving(one)) if one.desired == "up" else set[Identity]()
    found = process.find_orphans(str(home.root), one.name)
    return {stray: generation for stray, generation in found.items() if stray not in spared}


def leaving(one: Service) -> list[Identity]:
    """Give the processes that were replaced and are not gone yet."""
    return [found for found in map(process.decode, one.leaving) if process.alive(found)]


def settle_handover(db: Database, home: Home, name: str) -> None:
    """Make the row say who serves, if a process was started to take the place of another; end one that did not."""
    one = service.get(db, name)
    if one.successor is None or _promote(db, home, one):
        return
    for barren in process.find_shims(str(home.root), name):
        process.end_barren(barren)
    for stray in _strays(home, one):
        if stray != identity(one):
            process.stop(stray, 0)
    service.update(db, name, successor=None)
    write_start_marker(home.log(name), f"{name}, start {one.generation}, was given up")


def _promote(db: Database, home: Home, one: Service) -> bool:
    """Write down, once, that the successor serves; False when it does not."""
    there = process.find_orphans(str(home.root), one.name)
    holder = socket_handover.serving_process(home, SILENCE_S) if one.generation in there.values() else None
    if one.successor is None or holder is None or holder.generation != one.generation:
        return False
    found = process.decode(holder.identity)
    shim = process.shim(found)
    now = db.now()
    columns: dict[str, Any] = {
        **one.successor,
        "identity": holder.identity,
        "shim": process.encode(shim) if shim else None,
        "leaving": [process.encode(each) for each in (*leaving(one), running(one)) if each],
        "memory_bytes": memory.resident(found),
        **dict.fromkeys(("started_at", "ready_at"), now),
        **dict.fromkeys(("successor", "next_try_at", "exit_code", "cause_code", "cause", "hint")),
    }
    with db.transaction():
        done = service.get(db, one.name).successor is None
        return done or service.apply(db, one.name, ServiceEvent.REPLACED, fence=one.generation, **columns)


def reconcile_row(db: Database, home: Home, one: Service) -> Service:
    """Make a row that was left behind say what is: finish a stop that was cut short, bury what died unseen."""
    found = identity(one)
    if found and not process.alive(found):
        record_exit(db, home, one.name, found)  # first, as the end of a successor takes the place of its exit code
    settle_handover(db, home, one.name)
    one = service.get(db, one.name)
    if one.state == State.STOPPING:
        stop(db, home, one)
    return service.get(db, one.name)


def record_exit(db: Database, home: Home, name: str, dead: Identity) -> Cause | None:
    """Write down an end that nobody asked for and when the next try is; give its cause.

    None when it was asked for, or its successor serves, or it is not the recorded process, or somebody was quicker.
    """
    one = service.get(db, name)
    if one.identity != process.encode(dead) or one.state in service.DOWN | {State.STOPPING}:
        return None
    if one.successor and _promote(db, home, one):
        return None
    code = _exit_code(home, one, dead)
    if one.state == State.DRAINING and code == 0:
        _mark_stopped(db, one)
        return None
    why = _cause(home, one, dead, code)
    step, next_try_at, exits = _sentence(db, home, one, why)
    told = {"exit_code": code, "cause_code": why.code, "cause": why.sentence, "hint": why.hint}
    then = {"identity": None, "next_try_at": next_try_at, "exits": exits, "restarts": one.restarts + 1}
    with db.transaction():  # a successor may have taken its place while the shim was waited for
        same = service.get(db, name).identity == one.identity
        buried = same and service.apply(db, name, step, fence=one.generation, **then, **told)
    if buried and why.code == exit_causes.OOM and one.kind == "engine":
        safe_mode.record_oom(db, name, MOST)
    return why if buried else None


def _exit_code(home: Home, one: Service, dead: Identity) -> int | None:
    """Read the code the shim keeps; it writes it a moment after the end."""
    if one.shim:
        process.wait(process.decode(one.shim), process.LAST_WORD_S)
    return process.exit_status(home.run, one.name, dead)


kills = memory.OomCounter()
REBOOT = Cause("reboot", "The machine was restarted.", "mlxq status", permanent=False)


def _cause(home: Home, one: Service, dead: Identity, code: int | None) -> Cause:
    if dead.boot != process.boot():
        return REBOOT
    short = kills.lately() or memory.memory().pressure == memory.Pressure.CRITICAL
    return exit_causes.explain(code, log_tail(home.log(one.name)), one.name, memory_short=short)


def _sentence(db: Database, home: Home, one: Service, why: Cause) -> tuple[ServiceEvent, float | None, list[float]]:
    """Give the step an end leads to, when the next try is, and the exits that count."""
    now = db.now()
    if why is REBOOT:
        return ServiceEvent.EXITED, now, one.exits
    exits = restart.remember(one.exits, now, now - one.ready_at if one.ready_at else 0.0)
    if why.permanent:
        return ServiceEvent.FAILED, None, exits
    chosen = settings.load(home)
    retry = restart.next_try(
        exits,
        now,
        random.random(),  # noqa: S311 - jitter, no secret
        most=chosen["max-restarts"],
        first_pause_s=chosen["restart-delay"],
    )
    return (ServiceEvent.CRASH_LOOPED if retry.crash_loop else ServiceEvent.EXITED), retry.at, exits


def give_up(db: Database, name: str, problem: MlxqError, next_try_at: float | None = None) -> None:
    """Write down that a service cannot be started: until a person acts, or until `next_try_at`."""
    service.apply(
        db,
        name,
        ServiceEvent.FAILED if next_try_at is None else ServiceEvent.CRASH_LOOPED,
        identity=None,
        next_try_at=next_try_at,
        cause_code=problem.code,
        cause=problem.message,
        hint=problem.hint,
    )


def as_error(one: Service) -> MlxqError:
    """Give the error that tells a person why the service is down."""
    said = f"{one.name} is {one.state}: {one.cause or 'nothing says why'}"
    return errors.rebuild(one.cause_code or "failed", said, one.hint)
