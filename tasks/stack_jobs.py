"""Who belongs to the stack, and the jobs that follow when that changes. No huey: commands use it too."""

from __future__ import annotations

from collections.abc import Sequence

from catalog.machine import from_row
from state import facts, settings, stack
from state import service as rows
from state.db import Database
from state.errors import NotSetUp
from state.job import New
from state.paths import Home
from tasks import kinds, recommend
from tasks.plan.gateway import SERVICE as GATEWAY
from tasks.plan.page import SERVICE as PAGE


def made_by_hand(db: Database) -> None:
    """Forget what the stack was chosen for: a person changed it, and it stays until set-up is asked for another."""
    told = facts.recall(db, "stack")
    kept = {name: value for name, value in told.items() if name not in {"asked", "explain"}}
    facts.remember(db, "stack", kept | {"builtin": False})


def budget(db: Database, home: Home) -> int:
    """Give the bytes that all tiers together may use. Raises NotSetUp before detect has run."""
    row = facts.recall(db, "machine")
    if not row:
        raise NotSetUp("This machine has not been looked at yet.", hint="mlxq setup")
    return recommend.budget(from_row(row), settings.load(home)["memory-budget-pct"])


def around(home: Home) -> list[str]:
    """Give the services of every stack that are no tiers: the gateway, and the page unless it is switched off."""
    return [GATEWAY, PAGE] if settings.load(home)["page-port"] else [GATEWAY]


def leaving(db: Database) -> list[str]:
    """Give the services that do not belong to the stack any more."""
    staying = {*around(db.home), *(tier.name for tier in stack.tiers(db))}
    return [row.name for row in rows.listing(db) if row.name not in staying]


def arrival(tier: str, gone: Sequence[str]) -> list[New]:
    """Give the jobs that bring a new tier up: those that leave give their memory first, the gateway is told last."""
    return [
        *retirements(gone),
        kinds.new("start", {"service": tier}, softly=gone, label=tier),
        kinds.new("configure", needs=[tier]),
        kinds.new("start", {"service": GATEWAY}, needs=["configure"], label=GATEWAY),
    ]


def farewell(gone: Sequence[str], *, serving: bool) -> list[New]:
    """Give the jobs that take tiers away: the gateway is told first, so that none of its requests is cut off.

    `serving`: whether a gateway is wanted; one that a person put down stays down.
    """
    told = [kinds.new("start", {"service": GATEWAY}, needs=["configure"], label=GATEWAY)] if serving else []
    return [kinds.new("configure"), *told, *retirements(gone, after=[new.label for new in told])]


def retirements(gone: Sequence[str], after: Sequence[str] = ()) -> list[New]:
    """Give the job for each tier that leaves, labelled with its name; it is done whatever became of those before."""
    return [kinds.new("retire", {"service": name}, softly=after, label=name) for name in gone]
