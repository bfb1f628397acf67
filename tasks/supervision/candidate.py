"""Test a new gateway on a port of its own, while the running gateway keeps answering."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from state import secrets, service
from state.errors import GatewayFailed
from state.paths import Home
from state.stack import Tier
from tasks import smoke_test
from tasks.plan import exit_causes, gateway
from tasks.queue import Context
from tasks.supervision import exits, lifecycle, probe, spec
from tasks.system import ports, process
from tasks.system.process import Spawned

NAME = "gateway-proof"
"""The log of a candidate, and its mark in the environment, so that it is never taken for the gateway."""
LOOK_S = 0.1
LATER = "The running gateway was left as it is."


@dataclass(frozen=True)
class Candidate:
    """A gateway that is being tested."""

    name: str
    """Of its log."""
    spawned: Spawned
    port: int


def start_candidate(context: Context, config: Path, tiers: Sequence[Tier]) -> int:
    """Start a gateway with `config`, test it, and stop it; return how many tiers answered. Raises GatewayFailed."""
    with _started(context, config) as trial:
        return check(context, trial, tiers, context.check)


@contextmanager
def _started(context: Context, config: Path) -> Generator[Candidate]:
    """Run a gateway for a while; also end one that a killed worker left behind."""
    home, log, port = context.home, context.home.log(NAME), ports.spare()
    for stray in process.find_orphans(str(home.root), NAME):
        process.stop(stray, lifecycle.HUNG_GRACE_S)
    plan = spec.gateway_spec(context.db, home, config)
    log.unlink(missing_ok=True)
    environment = plan.environment(0) | {"MLXQ_SERVICE": NAME, gateway.TRIAL: str(port)}
    spawned = process.spawn(plan.argv, environment, log, home.run, NAME)
    try:
        yield Candidate(NAME, spawned, port)
    finally:
        process.stop(spawned.engine, lifecycle.HUNG_GRACE_S)


def check(context: Context, trial: Candidate, tiers: Sequence[Tier], check: Callable[[], None]) -> int:
    """Wait until the gateway is ready, and get an answer from each tier that is up; return how many answered.

    `check` is asked all the while, and may raise: that ends it at once. Raises GatewayFailed when the gateway does not
    start, or such a tier does not answer.
    """
    _await_ready(context, trial, check)
    answered = 0
    for tier in tiers:
        check()
        context.report("proving", done=answered, total=len(tiers), unit="tiers")
        answered += _answers(context, trial, tier, check)
    return answered


def _await_ready(context: Context, trial: Candidate, check: Callable[[], None]) -> None:
    until = time.monotonic() + spec.GATEWAY_START_S
    while not _ready(trial):
        context.report("starting a gateway on a second port")
        check()
        if process.wait(trial.spawned.engine, LOOK_S):
            raise GatewayFailed(
                f"A gateway with the new configuration does not start: {last_cause(context.home, trial)}",
                done=LATER,
                hint=f"mlxq logs {trial.name}",
            )
        if time.monotonic() > until:
            raise GatewayFailed(
                f"A gateway with the new configuration was not ready within {spec.GATEWAY_START_S:.0f} s.",
                done=LATER,
                hint=f"mlxq logs {trial.name}",
            )


def last_cause(home: Home, trial: Candidate) -> str:
    """Return why a candidate exited; the shim keeps the exit code a moment after the exit."""
    process.wait(trial.spawned.shim, LOOK_S)
    code = process.exit_status(home.run, trial.name, trial.spawned.engine)
    return exit_causes.explain(code, exits.log_tail(home.log(trial.name)), gateway.SERVICE).sentence


def _ready(trial: Candidate) -> bool:
    try:
        return probe.gateway_ready(trial.port) and _has_port(trial)
    except probe.Silent:  # it has just opened the port, on a busy machine
        return False


def _has_port(trial: Candidate) -> bool:
    """Return whether the candidate itself listens: another program on the port must be sent no key."""
    holder = ports.holder(trial.port)
    return holder is not None and holder.identity in process.members(trial.spawned.engine)


def _answers(context: Context, trial: Candidate, tier: Tier, check: Callable[[], None]) -> bool:
    """Return whether the tier answers; False for one that is not up, or went down while it was asked."""
    if not _up(context, tier):
        return False
    try:
        _ask(context, trial, tier, check)
    except GatewayFailed as problem:
        if not _up(context, tier):
            return False
        raise GatewayFailed(
            f"With the new configuration: {problem.message}", done=LATER, hint=problem.hint
        ) from problem
    return True


def _ask(context: Context, trial: Candidate, tier: Tier, check: Callable[[], None]) -> None:
    """Get one answer. It may take minutes, and `check` may end the wait for it at once. Raises GatewayFailed."""
    if not _has_port(trial):
        raise GatewayFailed("The candidate gateway has exited.", hint=f"mlxq logs {trial.name}")
    key = secrets.read(context.home.secrets)[secrets.MASTER]
    pool = ThreadPoolExecutor(1)
    try:
        answer = pool.submit(smoke_test.ask, trial.port, key, tier)
        while not wait([answer], LOOK_S).done:
            check()
        answer.result()
    finally:
        pool.shutdown(wait=False)


def _up(context: Context, tier: Tier) -> bool:
    row = service.find(context.db, tier.name)
    return row is not None and row.state in service.ROUTED


def needed(context: Context) -> bool:
    """Return whether a gateway is running whose callers a faulty configuration would let down."""
    row = service.find(context.db, gateway.SERVICE)
    return row is not None and lifecycle.running(row) is not None
