"""Ask for a model to be loaded or to sleep, and say how long it is to stay.

No huey: the gateway and commands ask so.
"""

from __future__ import annotations

from collections.abc import Sequence

from catalog import units
from catalog.model import Quant
from catalog.problems import UnknownModel
from state import ledger, on_demand, service, settings, stack
from state.db import Database, atomic
from state.errors import DoesNotFit, NotFound, UsageProblem
from state.paths import Home
from state.service import Service
from state.settings import Settings
from state.stack import Engine, Tier
from tasks import recommend, stack_jobs
from tasks.kinds import new
from tasks.plan import on_demand as plan
from tasks.plan.on_demand import Resident, idle_s
from tasks.weights import source as sources

GB = 10**9
LIVE_LOADS = "SELECT service FROM jobs WHERE kind = 'load' AND state IN ('blocked', 'queued', 'running')"
POKED = "UPDATE jobs SET run_at = ? WHERE kind = 'load' AND state = 'queued' AND run_at > ?"


def find(db: Database, name: str) -> str:
    """Return the engine behind the name of a tier, of an engine for embeddings or ranking, or of a model on this disk.

    Raises NotFound.
    """
    tiers = {tier.name: tier.engine.name for tier in stack.tiers(db)}
    beside = {engine.name: engine.name for engine in stack.retrieval(db)}
    if name in tiers | beside:
        return (tiers | beside)[name]
    entry = on_demand.model(db, name)
    if entry is None:
        raise NotFound(f"There is no model {name!r} on this disk.", hint=_hint(db.home, name))
    return serving_engine(db, entry.engine.weights) or entry.engine.name


def _hint(home: Home, name: str) -> str:
    """Return the command for a model that is not here: to download it where there is one of that name."""
    try:
        quant_named(home, name)
    except NotFound:
        return "mlxq models"
    return f"mlxq pull {name}"


def serving_engine(db: Database, folder: str) -> str | None:
    """Return the engine of the stack that serves a folder of weights, or None."""
    return next((engine.name for engine in stack.engines(db) if folder and engine.weights == folder), None)


@atomic
def load(db: Database, engine: str, *, background: bool = False) -> int:
    """Have an engine loaded in its turn, and return the job's id: one job, however many ask.

    `background`: whether only background requests ask, which come last. Raises DoesNotFit for one that never fits.
    """
    if not is_up(db, engine):
        require_room(db, stack.engine(db, engine))
    on_demand.ask(db, engine, background=background)
    return ledger.enqueue(db, new("load", {"service": engine}))[0]


def require_room(db: Database, engine: Engine) -> None:
    """Raise DoesNotFit, with the sum, where an engine would not fit even if all were stopped that may be."""
    pinned = [entry for entry in _kept(db) if entry.name != engine.name]
    present = [Resident(entry.name, entry.memory_bytes, pinned=True) for entry in pinned]
    plan.require_room(f"{engine.model} {engine.quant}", engine.memory_bytes, present, stack_jobs.budget(db, db.home))


def _kept(db: Database) -> list[Engine]:
    """Return the engines whose memory no other one gets: of the stack those that stay, and what is up and pinned."""
    up = {row.name for row in service.listing(db) if row.active}
    models = [entry for entry in on_demand.models(db) if entry.engine.name in up]
    return [*staying(db), *(entry.engine for entry in models if is_pinned(db.home, on_demand.names(entry)))]


def pull(db: Database, model: str) -> int:
    """Have a model downloaded because a request asks for it, and return the job's id: one job, however many ask.

    Raises NotFound for what is neither in the catalog nor the name of a repo, and DoesNotFit for a model of the catalog
    that is larger than the setting allows.
    """
    quant = quant_named(db.home, model)
    if quant is not None:
        require_small(db.home, model, quant.bytes)
    return ledger.enqueue(db, new("pull_on_demand", {"model": model}))[0]


def quant_named(home: Home, model: str) -> Quant | None:
    """Return the weights in the catalog that a name stands for; None for a repo's. Raises NotFound for neither."""
    try:
        return recommend.quant_named(model, recommend.all_models(home), settings.load(home)["default-quant"])
    except UnknownModel as problem:
        if sources.is_repo(model):
            return None
        raise NotFound(str(problem), hint="mlxq models --catalog") from problem


def require_small(home: Home, model: str, size: int) -> None:
    """Raise DoesNotFit for a model of more bytes than the setting pull-on-demand allows, NotFound where that is off."""
    limit = settings.load(home)["pull-on-demand"]
    if limit == settings.OFF:
        raise NotFound(f"There is no model {model!r} on this disk.", hint=_hint(home, model))
    if size > limit * GB:
        raise DoesNotFit(
            f"{model} has {units.files(size)}, and pull-on-demand allows {limit} GB.",
            done="Nothing was downloaded.",
            hint=f"mlxq pull {model}",
        )


def unload(db: Database, engine: str) -> int:
    """Have an engine stopped after its last answer, and return the job's id. The next request loads it again.

    Raises UsageProblem for one that never sleeps.
    """
    if never_sleeps(db, engine):
        raise UsageProblem(
            f"{engine} belongs to the stack, which stays loaded.",
            hint=f"mlxq down {engine}   (or let it sleep: mlxq config set tier-idle-stop {engine}=30m)",
        )
    return ledger.enqueue(db, new("unload", {"engine": engine}))[0]


def keep(db: Database, engine: str, keep_s: float) -> None:
    """Keep an engine for `keep_s` seconds after its last use, from now on; below 0 for ever, 0 stops it when idle."""
    on_demand.used(db, engine, db.now(), keep_s)


def staying(db: Database) -> list[Engine]:
    """Return the engines of the stack that no setting lets sleep."""
    tiers, values = stack.tiers(db), settings.load(db.home)
    return [engine for engine in stack.engines(db) if _stack_idle_s(tiers, values, engine.name) is None]


def never_sleeps(db: Database, engine: str) -> bool:
    """Return whether an engine is one of those that stay."""
    return any(entry.name == engine for entry in staying(db))


def idle_setting(db: Database, engine: str) -> float | None:
    """Return after how many idle seconds the settings have an engine stopped, None for never."""
    values = settings.load(db.home)
    if any(entry.name == engine for entry in stack.engines(db)):
        return _stack_idle_s(stack.tiers(db), values, engine)
    return _span(values["idle-stop"])


def _stack_idle_s(tiers: Sequence[Tier], values: Settings, engine: str) -> float | None:
    """Return the same of an engine of the stack. One of several tiers is stopped when all of them may be."""
    own = values["tier-idle-stop"]
    names = [tier.name for tier in stack.served_by(tiers, engine)] or [engine]
    spans = [_span(own.get(name, settings.OFF)) for name in names]
    return None if None in spans else max(span for span in spans if span is not None)


def expires_at(db: Database, row: Service, names: Sequence[str]) -> float | None:
    """Return when a loaded engine of these names is stopped unless it is used, in unix seconds; None for never."""
    if never_sleeps(db, row.name) or is_pinned(db.home, names):
        return None
    use = on_demand.residency(db, row.name)
    span = idle_s(use.keep_s, idle_setting(db, row.name))
    used_at = max(use.used_at or 0.0, row.ready_at or 0.0)
    return None if span is None else max(used_at + span, db.now())


def is_pinned(home: Home, names: Sequence[str]) -> bool:
    """Return whether the user wants a model of these names never to be stopped."""
    pinned = set(map(on_demand.folded, settings.load(home)["pinned"]))
    return any(on_demand.folded(name) in pinned for name in names)


def is_up(db: Database, engine: str) -> bool:
    """Return whether an engine serves, or is to."""
    row = service.find(db, engine)
    return row is not None and row.desired == "up"


def poke(db: Database) -> None:
    """Have the loads that wait for their turn look again."""
    if db.run(POKED, (db.now(), db.now())):
        db.wake()


def _span(value: int | str) -> float | None:
    return None if value == settings.OFF else float(value)
