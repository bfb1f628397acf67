"""Find out what makes an engine's answers faster with a model on this machine, and use it.

An engine of its own is tried beside what serves. Where memory does not admit that, the tier's engine is drained when it
has nothing to do, its requests go to the other tiers meanwhile, and the watchdog starts it again as soon as this job is
over, however it ended: the tier stays wanted all along, and a start of a service waits for a running job of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from state import event, secrets, stack
from state import service as rows
from state.errors import DoesNotFit
from state.metrics import tuning as tunings
from state.stack import Engine
from tasks import bench, kinds, recommend, stack_jobs
from tasks.engines import adapters, model_facts, serving
from tasks.engines.base import Installation, Served
from tasks.engines.reuse import TURN_TOKENS
from tasks.plan.tuning import AS_IT_IS
from tasks.queue import Context, job
from tasks.supervision import lifecycle, probe
from tasks.system import process
from tasks.system.child import Cancelled, Later, run_child

AT_ONCE = 4
"""Answers at once at most."""
FAST, SLOW = 192, 64
"""Tokens of an answer on a GPU and on a CPU."""
LOOK_S = 0.2


@dataclass(frozen=True)
class TuningSubject:
    """What is tuned."""

    engine: Engine
    """As it is tried: on a port of its own."""
    tier: Engine | None
    """What serves a tier with the model; None where weights were named."""
    installation: Installation
    backend: str

    @property
    def names(self) -> list[str]:
        """Return what the engine offers for the model."""
        facts = model_facts.read(Path(self.engine.weights))
        return list(adapters.named(self.installation.engine).tunings(facts))


@job("tune")
def tune(context: Context, target: str, service: str | None = None) -> dict[str, Any]:
    """Measure what the engine of a tier or of weights offers, and use the best that is faster with the same answers.

    `service`: the engine to drain for it, which is asked for by this job itself where memory admits no other.
    Returns {"target", "release", "used": name or None, "gain", "tried", "waits": whether a drain comes first}.
    Raises NotFound, DoesNotFit, EngineFailed, and Later while the tier or another job is at work.
    """
    began = context.db.now()
    bench.wait_for_quiet(context, began)
    subject = _subject(context, target)
    result: dict[str, Any] = {"target": target, "release": subject.installation.name, "waits": False}
    if not subject.names:
        return result | {"used": None, "gain": None, "tried": []}
    if service is not None:
        return result | _drained(context, subject, service, began)
    if drained := _to_drain(context, subject):
        context.then(kinds.new("tune", {"target": target, "service": drained}))
        return result | {"used": None, "gain": None, "tried": [], "waits": True}
    return result | _tuned(context, subject, began)


@job("untune")
def untune(context: Context, target: str) -> dict[str, Any]:
    """Use no tuning with the model of a tier or of weights any more. Returns {"target", "names"}. Raises NotFound."""
    source = _subject(context, target).engine.source
    names = tunings.clear(context.db, source)
    if names:
        _restart(context, source)
    return {"target": target, "names": names}


def _subject(context: Context, target: str) -> TuningSubject:
    """Return what is tuned. Raises NotFound, Damaged."""
    db, home = context.db, context.home
    backend = bench.read_machine(context).backend
    shape = {"prompt_tokens": 2 * TURN_TOKENS, "gen_tokens": SLOW if backend == "cpu" else FAST}
    tier = next((row.engine for row in stack.tiers(db) if row.name == target), None)
    models = recommend.all_models(home)
    if tier is None:
        engine, _ = bench.own_engine(context, target, models, {**shape, "concurrency": [AT_ONCE]})
    else:
        at_once = min(AT_ONCE, tier.concurrency)
        engine = bench.described(Path(tier.weights), tier.source, models, {**shape, "concurrency": [at_once]})
        engine = replace(engine, vision=tier.vision, source=tier.source)
    facts = model_facts.read(Path(engine.weights))
    chosen = serving.choose(db, home, tier or engine, facts, backend)
    return TuningSubject(engine, tier, chosen.installation, backend)


def _to_drain(context: Context, subject: TuningSubject) -> str | None:
    """Return the engine that must be drained first; None where there is memory for another one beside it.

    Raises DoesNotFit where no other tier would answer meanwhile, and Later while it has requests.
    """
    try:
        bench.check_room(context, bench.read_machine(context), subject.engine)
    except DoesNotFit as problem:
        row = rows.find(context.db, subject.tier.name) if subject.tier else None
        if row is None or row.state not in rows.ROUTED:
            raise
        if not _others_serve(context, row.name):
            raise DoesNotFit(
                f"{problem.message.rstrip('.')}, and no other engine would answer while {row.name} is drained.",
                hint=f"mlxq down {row.name}",
            ) from problem
        _await_quiet(context, row)
        return row.name
    return None


def _others_serve(context: Context, name: str) -> bool:
    chats = {engine.name for engine in stack.engines(context.db) if engine.purpose == stack.CHAT} - {name}
    return any(row.name in chats and row.state in rows.ROUTED for row in rows.listing(context.db))


def _await_quiet(context: Context, row: rows.Service) -> None:
    """Raise Later while an engine has requests."""
    key = secrets.ensure(context.home.secrets)[secrets.TIER]
    if probe.status(row.port, key, release=row.release).has_requests:
        raise Later(f"{row.name} is answering requests", bench.AGAIN_S)


def _drained(context: Context, subject: TuningSubject, service: str, began: float) -> dict[str, Any]:
    """Drain the engine, and tune in its place; the watchdog starts it after this job."""
    with lifecycle.hold(service, context.check):
        row = rows.get(context.db, service)
        if row.state in rows.ROUTED:
            _await_quiet(context, row)
        if identity := lifecycle.drain(context.db, row):
            while not process.wait(identity, LOOK_S):
                context.report(f"draining {service}")
                context.check()
        lifecycle.stop(context.db, context.home, rows.get(context.db, service))
        bench.check_room(context, bench.read_machine(context), subject.engine)
        figures = _tuned(context, subject, began, service)
    context.then(kinds.new("restart", {"service": service, "reason": "outdated"}))
    return figures


def _tuned(context: Context, subject: TuningSubject, began: float, service: str = "") -> dict[str, Any]:
    """Let a child measure, and use what is best. Raises EngineFailed, Later."""

    def tell(step: Mapping[str, Any]) -> None:
        bench.wait_for_quiet(context, began)
        _give_way(context, service)
        context.report(str(step["phase"]))

    figures = run_child(
        "tasks.engines.compare",
        {"tunings": _sides(context, subject), "memory_bytes": subject.engine.memory_bytes},
        on_progress=tell,
        cancelled=context.cancelled,
        timeout_s=context.remaining_s,
    )
    name: str | None = figures["best"]
    gain = next((row["gain"] for row in figures["tried"] if row["tuning"] == name), None)
    _use(context, subject, name, gain)
    return {"used": name, "gain": gain, "tried": figures["tried"]}


def _give_way(context: Context, service: str) -> None:
    """Raise Cancelled when a user asked something of the drained engine: that is not kept waiting."""
    waiting = "SELECT count(*) FROM jobs WHERE service = ? AND state = 'queued' AND source = 'person' AND id != ?"
    if context.db.value(waiting, (service, context.claim.id)):
        raise Cancelled


def _sides(context: Context, subject: TuningSubject) -> dict[str, Any]:
    """Return how the child starts the engine with each of its tunings."""
    engine, key = subject.engine, secrets.ensure(context.home.secrets)[secrets.TIER]
    served = Served(engine, model_facts.read(Path(engine.weights)), str(context.home.root), key, subject.backend)
    sides: dict[str, Any] = {}
    for name in (AS_IT_IS, *subject.names):
        tuned = replace(served, keeps_prompts=False, tuning="" if name == AS_IT_IS else name)
        sides[name] = bench.started(context, engine, serving.launch_with(tuned, subject.installation)) | {
            "port": engine.port,
            "key": key,
            "name": engine.name,
            "concurrency": engine.concurrency,
            "gen_tokens": SLOW if subject.backend == "cpu" else FAST,
        }
    return sides


def _use(context: Context, subject: TuningSubject, name: str | None, gain: float | None) -> None:
    """Write down what is used from now on, and have the engines that serve the model change to it one by one."""
    db, release, source = context.db, subject.installation.name, subject.engine.source
    before = tunings.find(db, release, source)
    if name is not None and gain is not None:
        tunings.record(db, release, source, name, gain)
        event.record(db, "tuned", engine=release, model=subject.engine.model, tuning=name, gain=gain)
    elif before:
        tunings.clear(db, source, release)
    if (before.name if before else None) != name:
        _restart(context, source)


def _restart(context: Context, source: str) -> None:
    """Restart the engines that serve a model, one after another; one that runs as it would be started is left alone."""
    names: Iterable[str] = (engine.name for engine in stack.engines(context.db) if engine.source == source)
    running = [row.name for row in rows.listing(context.db) if row.state in rows.ROUTED]
    for new in stack_jobs.restarts(context.db, [name for name in names if name in running]):
        context.then(new)
