"""What users asked for last of each service and tier, in the order in which they asked.

Requests are numbered across all shells, and recorded when they are made, not when their jobs run. A job carries the
number of the request that led to it, and what it does loses to a request with a higher number. So the newest request
wins, in whatever order the jobs run, and also when a job runs again because its worker died.
"""

from __future__ import annotations

from collections.abc import Iterable

from state import safe_mode, service
from state.classes import dataclass
from state.db import Database
from state.job import Request
from state.service import ALIVE, State

EVERY = "every service"
"""The subject of a request for all services, also those that have no row yet."""
STACK = "stack"
"""The subject of a request for all tiers of the stack."""
RUNNING = ALIVE - {State.STOPPING}


@dataclass(frozen=True)
class Requested:
    """The newest request about one subject."""

    value: str
    seq: int
    """Its number; 0 when there was none."""


NOTHING = Requested("", 0)


def next_seq(db: Database) -> int:
    """Return the number of a request that is made now. Call it inside the transaction that records the request."""
    return 1 + db.value(
        "SELECT max((SELECT coalesce(max(seq), 0) FROM desired), (SELECT coalesce(max(seq), 0) FROM jobs))"
    )


def find(db: Database, subject: str) -> Requested:
    """Return the newest request about a subject."""
    row = db.row("SELECT value, seq FROM desired WHERE subject = ?", (subject,))
    return NOTHING if row is None else Requested(row["value"], row["seq"])


def stay_down(db: Database, name: str | None) -> None:
    """Have a service that sleeps, or every one, stay down also when a request asks for it."""
    db.run("UPDATE residency SET asleep = 0 WHERE ? IS NULL OR engine = ?", (name, name))


def record(db: Database, subject: str, value: str, seq: int) -> bool:
    """Record a request, unless a newer one about the same is recorded; return whether it was."""
    return (
        db.run(
            "INSERT INTO desired (subject, value, seq, at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (subject) DO UPDATE SET value = excluded.value, seq = excluded.seq, at = excluded.at"
            " WHERE excluded.seq >= desired.seq",
            (subject, value, seq, db.now()),
        )
        > 0
    )


def of_service(db: Database, name: str) -> Requested:
    """Return the newest request, "up" or "down", that concerns a service: one of its own, or one about all of them."""
    return max(find(db, _service(name)), find(db, EVERY), key=lambda requested: requested.seq)


def restart_of(db: Database, name: str) -> Requested:
    """Return the newest request to restart a service: "restart" or "purge"."""
    return find(db, _restart(name))


def request(db: Database, name: str, what: Request, seq: int, *, waits: bool = False) -> None:
    """Record what a user asks of a service, and have it take effect now.

    `waits`: its job waits for others. A service that is down then comes up when that job's turn comes, not before:
    its weights may not be there yet.
    """
    with db.transaction():
        if what == "down":
            stay_down(db, name)
        if what == "up":
            _renew_restart(db, name, seq)
        if what in {"restart", "purge"}:
            _request_restart(db, name, what, seq)
        elif record(db, _service(name), what, seq):
            _settle(db, name, waits=waits)


def _request_restart(db: Database, name: str, what: str, seq: int) -> None:
    """Record a restart. A purge that is still to come is not lost to a plain restart."""
    row, earlier = service.find(db, name), restart_of(db, name)
    pending = row is not None and earlier.value == "purge" and earlier.seq > row.restarted
    record(db, _restart(name), "purge" if pending else what, seq)
    safe_mode.leave(db, name)
    if row is not None and row.desired == "up":
        service.set_desired(db, name, "up")


def _renew_restart(db: Database, name: str, seq: int) -> None:
    """Request again a restart that did not come, as a `down` cancelled it, where the service was not stopped either."""
    row, restart = service.find(db, name), restart_of(db, name)
    if row is not None and row.desired == "down" and row.state in RUNNING and restart.seq > row.restarted:
        record(db, _restart(name), restart.value, seq)


def _settle(db: Database, name: str, *, waits: bool) -> None:
    """Have the newest request about a service take effect."""
    row, up = service.find(db, name), of_service(db, name).value == "up"
    if up:
        safe_mode.leave(db, name)
    if row is not None and not (up and waits and row.state not in RUNNING):
        service.set_desired(db, name, "up" if up else "down")


def take_effect(db: Database, name: str, seq: int) -> bool:
    """Have request `seq` for a service to run take effect; False when a newer one wants it down.

    Raises NotFound.
    """
    with db.transaction():
        newest = of_service(db, name)
        if newest.value == "down" and newest.seq > seq:
            return False
        if service.get(db, name).desired == "down":
            service.set_desired(db, name, "up")
        return True


def request_tiers(db: Database, seq: int, *, present: Iterable[str] = (), absent: Iterable[str] = ()) -> None:
    """Record which tiers users want in the stack and which not."""
    for name in absent:
        record(db, _tier(name), "absent", seq)
    for name in present:
        record(db, _tier(name), "present", seq)


def request_stack(db: Database, seq: int) -> bool:
    """Record that users chose the whole stack; False when a newer request about it or a tier of it is recorded."""
    query = "SELECT count(*) FROM desired WHERE seq > ? AND (subject = ? OR subject LIKE 'tier %')"
    return not db.value(query, (seq, STACK)) and record(db, STACK, "chosen", seq)


def tier_superseded(db: Database, name: str, seq: int) -> bool:
    """Return whether a newer request than `seq` decides about a tier: that one removed or replaced it, or the stack."""
    return max(find(db, _tier(name)).seq, find(db, STACK).seq) > seq


def tier_removed(db: Database, name: str, seq: int) -> bool:
    """Return whether a newer request than `seq` took a tier out of the stack."""
    newest = find(db, _tier(name))
    return newest.value == "absent" and newest.seq > seq


def newer_tiers(db: Database, seq: int) -> set[str]:
    """Return the tiers that a newer request than `seq` added."""
    rows = db.rows("SELECT subject FROM desired WHERE subject LIKE 'tier %' AND value = 'present' AND seq > ?", (seq,))
    return {row["subject"].removeprefix(_tier("")) for row in rows}


def _tier(name: str) -> str:
    return f"tier {name}"


def _service(name: str) -> str:
    return f"service {name}"


def _restart(name: str) -> str:
    return f"restart {name}"
