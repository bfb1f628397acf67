"""Jobs that change one machine of the fleet: what it serves, or its version of mlxq. The others serve meanwhile.

Such a job looks what is left to do, so that it can be killed at any moment and run again. What it asks of a node
carries an idempotency key made of the job: the jobs of the first try are found, and not made twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from state import fleet, job, service
from state.classes import dataclass
from state.db import Database
from state.errors import Busy, MlxqError, NotRunning, Offline, StateUnavailable, rebuild
from state.job import ENDED, JobEvent, JobState
from state.service import ROUTED
from tasks.fleet import identity, members
from tasks.fleet.members import FleetMember, JobRow, as_object
from tasks.plan.fleet import is_lost, printable
from tasks.plan.gateway import SERVICE as GATEWAY
from tasks.queue import Context
from tasks.queue import job as task
from tasks.system.child import Cancelled

Answer = TypeVar("Answer")
LOOK_S = 0.5
AWAY_S = 600.0
"""How long a node may be away while its jobs run: an upgrade replaces its gateway, a network may fail for minutes."""
DRAIN_S = 120.0
"""How long is waited for a node's last answers: its own apps may ask without end, and each engine drains anyway."""
ASKED_AGAIN = "smoke_test"
"""The job that asks each tier once; `await_serving` asks until they answer, as a machine that died needs longer."""
SERVES_S = 300.0
"""How long a node may take to serve after its jobs have ended."""


@task("change_node")
def change_node(context: Context, node: str, choice: dict[str, str], intent: str) -> dict[str, Any]:
    """Have one machine serve `choice`, "model quant" by tier; an empty one drains it.

    The weights are pulled first; then it is offered for nothing until it serves. Returns {"node", "changed"}. Raises
    NotFound, NotRunning where no other machine answers meanwhile, Busy, Offline, and what its jobs end with.
    """
    if not choice:
        return {"node": node, "changed": fleet.change(context.db, node, state="draining")}
    with members.of(context.db, node) as member:
        work = NodeWork(context, member)
        if work.first(member.served) == choice and member.problem(list(choice)) is None:
            return {"node": node, "changed": False}
        for words in dict.fromkeys(choice.values()):
            model, _, quant = words.partition(" ")
            work.do("pull", {"model": model, "quant": quant})
        with work.withheld():
            work.do("stack", {"choice": choice, "intent": intent})
            work.require(choice)
            work.await_serving(list(choice))
    return {"node": node, "changed": True}


@task("upgrade_node")
def upgrade_node(context: Context, node: str, to: str | None = None) -> dict[str, Any]:
    """Have a node upgrade mlxq to the newest version, or `to` one, while it is offered for nothing.

    Returns {"node", "version", "upgraded"}. Raises as `change_node` does.
    """
    with members.of(context.db, node) as member:
        work = NodeWork(context, member)
        tiers = list(work.first(member.served))
        with work.withheld():
            ended = work.do("upgrade", {"to": to} if to else {})
            work.await_serving(tiers)
    result = {name: value for row in ended for name, value in as_object(row.get("result")).items()}
    return {"node": node, "version": printable(str(result.get("version"))), "upgraded": bool(result.get("upgraded"))}


@dataclass(frozen=True)
class NodeWork:
    """What one job does at one machine."""

    context: Context
    member: FleetMember

    def first(self, ask: Callable[[], Answer]) -> Answer:
        """Return what the machine answers; only a job that was under way already waits for one that is away."""
        return self.asked(ask) if self.context.claim.attempt > 1 else ask()

    def asked(self, ask: Callable[[], Answer]) -> Answer:
        """Return what the machine answers; one that is away is asked again for AWAY_S seconds. Raises Offline."""
        until = time.monotonic() + AWAY_S
        while True:
            try:
                return ask()
            except (Offline, StateUnavailable):
                if time.monotonic() > until:
                    raise
            self.context.report(f"{self.member.name} is away; asking again")
            self.context.wait(LOOK_S)

    def do(self, command: str, args: Mapping[str, Any]) -> list[JobRow]:
        """Have the machine do a command, and return its jobs once they have ended; they are cancelled with this one.

        Raises the error of one that failed, Busy where one was cancelled there.
        """
        key = _key(self.context, command, args)
        numbers = self.asked(lambda: self.member.post(command, args, key))
        try:
            rows = self._ended(numbers)
        except Cancelled:
            for number in numbers:
                with suppress(MlxqError):
                    self.member.cancel(number)
            raise
        failed = [row for row in rows if row.get("state") == JobState.FAILED and row.get("kind") != ASKED_AGAIN]
        if failed:
            raise self._error(failed[0])
        if any(row.get("state") == JobState.CANCELLED for row in rows):
            again = "upgrade" if command == "upgrade" else "apply"
            raise Busy(f"The jobs of {command} on {self.member.name} were cancelled there.", hint=f"mlxq fleet {again}")
        return rows

    def _ended(self, numbers: Sequence[int]) -> list[JobRow]:
        """Wait until jobs, and what came of them, have ended; return them."""
        while True:
            rows = self.asked(lambda: [row for number in numbers for row in self.member.jobs(number)])
            live = next((row for row in rows if str(row.get("state")) not in ENDED), None)
            if live is None:
                return rows
            self.context.report(self._phase(live), **_progress(live))
            self.context.wait(LOOK_S)

    @contextmanager
    def withheld(self) -> Generator[None]:
        """Have the machine offered for nothing meanwhile, once its last answers have ended.

        A job that ends, however it does, holds no machine; where its worker stops, it holds it until the next one.
        A machine that is a fleet of its own is not held: nothing else would answer. Raises NotRunning where it is the
        only one of several that answers.
        """
        if not fleet.nodes(self.context.db):
            yield
            return
        _require_other(self.context.db, self.member.name)
        fleet.begin_change(self.context.db, self.member.name, self.context.claim.id)
        try:
            self._drain()
            yield
        except (MlxqError, Cancelled):
            fleet.end_change(self.context.db, self.member.name)
            raise
        fleet.end_change(self.context.db, self.member.name)

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_S
        while self.member.running() and time.monotonic() < until:
            self.context.report(f"waiting for the last answers of {self.member.name}")
            self.context.wait(LOOK_S)

    def require(self, choice: Mapping[str, str]) -> None:
        """Raise Busy where the stack became another one than was asked for."""
        serves = self.asked(self.member.served)
        if serves != choice:
            words = printable(", ".join(f"{tier} {words}" for tier, words in serves.items()) or "nothing")
            raise Busy(f"{self.member.name} was changed by another meanwhile: it serves {words}.", hint=PLAN)

    def await_serving(self, tiers: Sequence[str]) -> None:
        """Wait until the machine serves these tiers. Raises NotRunning."""
        until = time.monotonic() + SERVES_S
        while problem := self.member.problem(tiers):
            if time.monotonic() > until:
                raise NotRunning(
                    f"{self.member.name} does not serve again: {printable(problem)}.",
                    done="The machines after it were left as they are.",
                    hint="mlxq why" if self._own else f"mlxq --node {self.member.name} jobs",
                )
            self.context.report(f"waiting until {self.member.name} serves")
            self.context.wait(LOOK_S)

    @property
    def _own(self) -> bool:
        return self.member.name == identity.own_name(self.context.home)

    def _phase(self, row: JobRow) -> str:
        """Return what the machine is at."""
        subject = str(as_object(row.get("args")).get("service", ""))
        words = [str(row.get("kind", "")), subject, str(row.get("phase") or "")]
        return printable(f"{self.member.name}: {' '.join(filter(None, words))}")

    def _error(self, row: JobRow) -> MlxqError:
        """Return the error of one of the machine's jobs, as one of this machine."""
        message = printable(f"{self.member.name}: {row.get('error') or 'its job failed'}")
        hint = str(row.get("hint") or "mlxq why") if self._own else ""
        return rebuild(
            str(row.get("error_code") or "failed"),
            message,
            hint or f"mlxq --node {self.member.name} jobs show {row.get('id')}",
        )


PLAN = "mlxq fleet plan"


def _require_other(db: Database, name: str) -> None:
    """Raise NotRunning where no machine of the fleet but `name` answers."""
    gateway = service.find(db, GATEWAY)
    own_serves = name != identity.own_name(db.home) and gateway is not None and gateway.state in ROUTED
    answering = [node for node in fleet.nodes(db) if node.name != name and node.offered and not is_lost(node)]
    if not own_serves and not answering:
        raise NotRunning(
            f"No other machine of the fleet answers; nothing would while {name} changes.",
            done=f"What {name} serves was not changed.",
            hint="mlxq node list",
        )


def _progress(row: JobRow) -> dict[str, Any]:
    """Return the figures of a job's progress by which a bar is drawn."""
    rows = as_object(row.get("progress"))
    figures = {name: rows[name] for name in ("done", "total") if isinstance(rows.get(name), int)}
    return figures | ({"unit": "bytes"} if rows.get("unit") == "bytes" else {})


def _key(context: Context, command: str, args: Mapping[str, Any]) -> str:
    """Return the idempotency key of a command: the same for each try of this job, another once a user retries it."""
    row = job.get(context.db, context.claim.id)
    revived = context.db.value("SELECT count(*) FROM events WHERE job = ? AND name = ?", (row.id, JobEvent.REVIVED))
    text = repr((row.id, row.created_at, revived, command, sorted(args.items())))
    return hashlib.sha256(text.encode()).hexdigest()
