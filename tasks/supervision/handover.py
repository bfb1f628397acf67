"""Replace the gateway while it serves: a successor is proven on a second port, takes over, and then the first leaves.

A worker may be killed at any moment, as what is under way can always be told from what is there:

    planned     the row says that a start is coming, and of what; the process may not be there yet
    in test     it bears the marks of that start and serves no one: the next worker ends it
    taken over  the gateways' own unix socket leads to it: the next worker records that
    replaced    the row names it; the one before is in `leaving`, and ends by itself, or by the watchdog
"""

from __future__ import annotations

import signal
import time

from state import service as rows
from state import stack
from state.errors import GatewayFailed
from state.paths import Home
from state.service import Service, State
from tasks.plan import gateway
from tasks.queue import Context
from tasks.supervision import candidate, exits, lifecycle, repairs, socket_handover
from tasks.supervision.candidate import Candidate
from tasks.supervision.spec import LaunchSpec
from tasks.system import ports, process
from tasks.system.process import Spawned

TAKE_OVER_S = 30.0
"""Taking over is a matter of milliseconds; the rest is for a machine that is very busy."""
LOOK_S = 0.05


class HandoverAborted(Exception):
    """The replacement is not needed any more, or the process to replace is gone."""


def possible(home: Home, row: Service) -> bool:
    """Return whether a service can be replaced without a gap: a gateway that serves and hands its sockets over."""
    if row.name != gateway.SERVICE or row.state not in rows.ROUTED:
        return False
    holder = socket_handover.serving_process(home)
    return holder is not None and holder.identity == row.identity


def replace(context: Context, row: Service, plan: LaunchSpec, *, restarted: int = 0) -> None:
    """Have a gateway made by `plan` take the place of the one that serves.

    Does nothing when none is wanted any more, or the one that serves ends meanwhile: a start takes less time then than
    to prove one. Raises GatewayFailed when it does not prove fit: the running one was left as it is.
    """
    db, home, port = context.db, context.home, ports.spare()
    generation = rows.begin_handover(db, row.name, plan.argv, plan.spec_hash, plan.port, restarted=restarted)
    lifecycle.write_start_marker(home.log(row.name), f"{row.name}, start {generation}")
    key = candidate.new_key()
    environment = plan.environment(generation) | candidate.trial_environment(port, key)
    try:
        spawned = process.spawn(plan.argv, environment, home.log(row.name), home.run, row.name)
        trial = Candidate(row.name, spawned, port, key)
        candidate.check(context, trial, stack.tiers(db), lambda: _check(context, row))
        process.send(spawned.engine, signal.SIGUSR1)
        _await_take_over(home, trial)
        repairs.follow(row.name, spawned.engine)
    except HandoverAborted:
        return
    except GatewayFailed:
        if lifecycle.running(row):
            raise
    finally:
        exits.reconcile_row(db, home, rows.get(db, row.name))


def _check(context: Context, row: Service) -> None:
    """Raise when the job is to stop, the gateway was stopped, or the one that serves is gone.

    One that the watchdog found frozen is ended: no request would be answered until the test is over.
    """
    context.check()
    current, identity = rows.get(context.db, row.name), lifecycle.running(row)
    if current.desired == "down" or identity is None:
        raise HandoverAborted
    if current.state == State.DEGRADED and process.frozen(identity):
        lifecycle.stop(context.db, context.home, current, lifecycle.HUNG_GRACE_S)
        raise HandoverAborted


def _await_take_over(home: Home, trial: Candidate) -> None:
    """Wait until the successor serves. From here on the job is not stopped half-way. Raises GatewayFailed."""
    until = time.monotonic() + TAKE_OVER_S
    while not _serves(home, trial.spawned):
        if process.wait(trial.spawned.engine, LOOK_S):
            raise GatewayFailed(
                f"A gateway with the new configuration exited during the handover: {candidate.last_cause(home, trial)}",
                **_after(trial),
            )
        if time.monotonic() > until:
            raise GatewayFailed(
                f"A gateway with the new configuration did not take over within {TAKE_OVER_S:.0f} s.", **_after(trial)
            )


def _after(trial: Candidate) -> dict[str, str]:
    """Return what an error says of the state that it leaves, and of what to do next."""
    return {"done": candidate.LATER, "hint": f"mlxq logs {trial.name}"}


def _serves(home: Home, spawned: Spawned) -> bool:
    holder = socket_handover.serving_process(home)
    return holder is not None and holder.identity == process.encode(spawned.engine)
