"""Who belongs to the stack, and the jobs that follow when that changes. No huey: commands use it too."""

from __future__ import annotations

from collections.abc import Sequence

from catalog.machine import from_row
from state import facts, on_demand, settings, stack
from state import service as rows
from state.db import Database
from state.errors import NotSetUp
from state.job import NewJob
from state.paths import Home
from tasks import kinds, recommend, tier_requests
from tasks.front.plan import SERVICE as FRONT
from tasks.plan.gateway import SERVICE as GATEWAY
from tasks.plan.page import SERVICE as PAGE


def mark_customized(db: Database) -> None:
    """Mark the stack as customized by the user: it stays as it is until setup is asked for another."""
    stored = facts.get(db, "stack")
    remaining = {name: value for name, value in stored.items() if name not in {"asked", "explain"}}
    facts.put(db, "stack", remaining | {"builtin": False})


def budget(db: Database, home: Home) -> int:
    """Return the bytes that all tiers together may use. Raises NotSetUp before detect has run."""
    row = facts.get(db, "machine")
    if not row:
        raise NotSetUp("This machine has not been looked at yet.", hint="mlxq setup")
    percent = facts.budget_percent(db, settings.load(home)["memory-budget-pct"])
    return recommend.budget(from_row(row), percent or settings.AUTO)


def tier_budget(db: Database, home: Home) -> int:
    """Return the bytes that the tiers' engines may use beside those for embeddings and ranking. Raises NotSetUp."""
    return budget(db, home) - reserved_bytes(db)


def reserved_bytes(db: Database) -> int:
    """Return the bytes that the engines for embeddings and ranking may use at their peak."""
    return sum(engine.memory_bytes for engine in stack.retrieval(db))


def auxiliary_services(home: Home) -> list[str]:
    """Return the services of the stack that are no tiers: the gateway, the page and the front where they are on."""
    values = settings.load(home)
    return [GATEWAY, *([PAGE] if values["page-port"] else []), *([FRONT] if values["front"] else [])]


def everything(db: Database) -> list[str]:
    """Return the tiers of the stack, the engines of no tier, and the services beside them."""
    engines = [engine.name for engine in stack.retrieval(db)]
    return [*(tier.name for tier in stack.tiers(db)), *engines, *auxiliary_services(db.home)]


def start_all(db: Database, names: Sequence[str]) -> list[NewJob]:
    """Record that these should be served, all there are; return the jobs, with a new configuration of the gateway.

    The caller holds a transaction.
    """
    effects = tier_requests.start(db, names)
    return [*retire(leaving(db)), *starts(effects.services)]


def start_named(db: Database, names: Sequence[str]) -> list[NewJob]:
    """Record that these should be served, and return the jobs. The caller holds a transaction."""
    effects = tier_requests.start(db, names)
    jobs = [job for name in effects.services for job in start(name)]
    return [*jobs, *(tier_requests.reroute(db, after=[job.label for job in jobs]) if effects.reroutes else [])]


def restart_in_turn(names: Sequence[str], *, purge: bool = False) -> list[NewJob]:
    """Return the jobs that restart services, each of which needs the one before. `purge`: drop old prompts on disk."""
    labels = [f"restart {name}" for name in names]
    flags = {"purge": True} if purge else {}
    return [
        kinds.new("restart", {"service": name, **flags}, needs=labels[:number][-1:], label=labels[number])
        for number, name in enumerate(names)
    ]


def starts(services: Sequence[str]) -> list[NewJob]:
    """Return the jobs that start the whole stack, with a new configuration of the gateway."""
    return [kinds.new("configure"), *(job for name in services for job in start(name, after=["configure"]))]


def start(name: str, after: Sequence[str] = (), label: str = "") -> list[NewJob]:
    """Return the jobs that start one service; the front's program is installed first, where it is not."""
    installs = [kinds.new("install_front", label="install_front")] if name == FRONT else []
    needs = [*after, *(job.label for job in installs)]
    return [*installs, kinds.new("start", {"service": name}, needs=needs, label=label or f"start {name}")]


def leaving(db: Database) -> list[str]:
    """Return the services that belong neither to the stack any more nor to a model on this disk."""
    staying = {*auxiliary_services(db.home), *(engine.name for engine in stack.engines(db))}
    staying |= {entry.engine.name for entry in on_demand.models(db)}
    return [row.name for row in rows.listing(db) if row.name not in staying]


def gateway_wanted(db: Database) -> bool:
    """Return whether the gateway should run."""
    row = rows.find(db, GATEWAY)
    return row is not None and row.desired == "up"


def add_tier(engine: str, retired: Sequence[str]) -> list[NewJob]:
    """Return the jobs that bring a new tier up: those that leave give their memory first, the gateway is told last.

    `engine`: who serves it, and may do so for others already; `retired`: the engines that leave.
    """
    return [
        *retire(retired),
        kinds.new("start", {"service": engine}, after=retired, label=engine),
        kinds.new("configure", needs=[engine]),
        kinds.new("start", {"service": GATEWAY}, needs=["configure"], label=GATEWAY),
    ]


def remove_tiers(retired: Sequence[str], *, serving: bool) -> list[NewJob]:
    """Return the jobs that take tiers away: the gateway is told first, so that none of its requests is cut off.

    `serving`: whether a gateway should run; one that the user stopped stays down.
    """
    gateway_jobs = [kinds.new("start", {"service": GATEWAY}, needs=["configure"], label=GATEWAY)] if serving else []
    return [kinds.new("configure"), *gateway_jobs, *retire(retired, after=[new.label for new in gateway_jobs])]


def engine_changes(db: Database, home: Home) -> list[NewJob]:
    """Return the jobs that bring every tier on its new engine."""
    return restarts(db, on_other_engines(db, home))


def on_other_engines(db: Database, home: Home) -> list[str]:
    """Return the engines that run, and would be another program if it was started now. Raises NotSetUp."""
    from tasks.supervision import spec

    running = {row.name: row.release for row in rows.listing(db) if row.kind == "engine" and row.desired == "up"}
    names = [engine.name for engine in stack.engines(db) if engine.name in running and engine.weights]
    return [name for name in names if spec.launch_spec(db, home, name).release != running[name]]


def restarts(db: Database, names: Sequence[str]) -> list[NewJob]:
    """Return the jobs that restart tiers one after another, whatever becomes of each, and tell the gateway.

    A tier that runs already as it would be started is left alone.
    """
    labels = [f"restart {name}" for name in names]
    jobs = [
        _restart(name, label, labels[:number][-1:])
        for number, (name, label) in enumerate(zip(names, labels, strict=True))
    ]
    return [*jobs, *_tell_gateway(db, labels)] if names else []


def swaps(db: Database, names: Sequence[str], engine: str, version: str) -> list[NewJob]:
    """Return the jobs that restart tiers one after another on a version of an engine, and look at each.

    A version on which one does not serve is taken back, and the tiers after it are left alone.
    """
    jobs: list[NewJob] = []
    before: list[str] = []
    for name in names:
        settle = kinds.new(
            "settle_engine",
            {"engine": engine, "version": version, "tier": name},
            after=[f"restart {name}"],
            label=f"settle {name}",
        )
        jobs += [_restart(name, f"restart {name}", before), settle]
        before = [settle.label]
    return [*jobs, *_tell_gateway(db, before)] if names else []


def _restart(name: str, label: str, after: Sequence[str]) -> NewJob:
    return kinds.new("restart", {"service": name, "reason": "outdated"}, after=after, label=label)


def _tell_gateway(db: Database, after: Sequence[str]) -> list[NewJob]:
    """Return the jobs that write the gateway's configuration again, and replace a gateway that runs by it."""
    jobs = [kinds.new("configure", after=after, label="configure")]
    row = rows.find(db, GATEWAY)
    if row and row.desired == "up":
        jobs.append(kinds.new("start", {"service": GATEWAY}, needs=["configure"], label=GATEWAY))
    return jobs


def retire(names: Sequence[str], after: Sequence[str] = ()) -> list[NewJob]:
    """Return the job for each engine that leaves, labeled with its name; it is done whatever became of the others."""
    return [kinds.new("retire", {"service": name}, after=after, label=name) for name in names]
