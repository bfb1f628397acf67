"""Test a new gateway on a port of its own, while the running gateway keeps answering."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

from state import secrets, service
from state.errors import EngineFailed, GatewayFailed
from state.paths import Home
from state.stack import Tier
from tasks import smoke_test
from tasks.plan import exit_causes, gateway
from tasks.queue import Context
from tasks.runtime import log
from tasks.supervision import exits, lifecycle, probe, spec
from tasks.system import ports, process
from tasks.system.background_call import BackgroundCall
from tasks.system.process import Spawned

NAME = "gateway-proof"
"""The log of a candidate, and its mark in the environment, so that it is never taken for the gateway."""
LOOK_S = 0.1
ANSWERS_S = 30.0
"""Seconds in which the tiers have to answer."""
LATER = "The running gateway was left as it is."


@dataclass(frozen=True)
class Candidate:
    """A gateway that is being tested."""

    name: str
    """Of its log."""
    spawned: Spawned
    port: int
    key: str
    """Opens this gateway alone, and only as long as it is proven."""


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
    key = new_key()
    environment = plan.environment(0) | {"MLXQ_SERVICE": NAME} | trial_environment(port, key)
    spawned = process.spawn(plan.argv, environment, log, home.run, NAME)
    try:
        yield Candidate(NAME, spawned, port, key)
    finally:
        process.stop(spawned.engine, lifecycle.HUNG_GRACE_S)


def new_key() -> str:
    """Return a key for one candidate."""
    return token_urlsafe(24)


def trial_environment(port: int, key: str) -> dict[str, str]:
    """Return what makes a gateway a candidate: the port on which it is proven, and the key with which."""
    return {gateway.TRIAL: str(port), gateway.TRIAL_KEY: key}


def check(context: Context, trial: Candidate, tiers: Sequence[Tier], check: Callable[[], None]) -> int:
    """Wait until the gateway is ready, and get an answer from each tier that is up; return how many answered.

    `check` is asked all the while, and may raise: that ends it at once. Raises GatewayFailed when the gateway does not
    start, or such a tier does not answer. A tier that has requests to answer and does not answer within ANSWERS_S is
    busy, which is no fault of the configuration.
    """
    _await_ready(context, trial, check)
    calls = {tier: _ask(trial, tier) for tier in tiers if _up(context, tier)}
    until = time.monotonic() + ANSWERS_S
    answered = 0
    while calls and time.monotonic() < until:
        check()
        context.report("proving", done=answered, total=answered + len(calls), unit="tiers")
        next(iter(calls.values())).wait(LOOK_S)
        for tier in [tier for tier, call in calls.items() if call.ended or not _up(context, tier)]:
            answered += _answered(context, trial, tier, calls.pop(tier))
    for tier in calls:
        _expect_busy(context, trial, tier)
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
    process.wait(trial.spawned.shim, process.LAST_WORD_S)
    code = process.exit_status(home.run, trial.name, trial.spawned.engine)
    return exit_causes.explain(code, exits.log_tail(home.log(trial.name)), gateway.SERVICE).sentence


def _ready(trial: Candidate) -> bool:
    try:
        # another program on the port must be sent no key
        return probe.gateway_ready(trial.port) and not ports.taken_from(trial.port, trial.spawned.engine)
    except probe.Silent:  # it has just opened the port, on a busy machine
        return False


def _ask(trial: Candidate, tier: Tier) -> BackgroundCall[None]:
    """Ask the candidate for an answer of a tier, with a key that opens nothing else."""
    return BackgroundCall(lambda: smoke_test.ask(trial.port, trial.key, tier), f"proof-{tier.name}")


def _answered(context: Context, trial: Candidate, tier: Tier, call: BackgroundCall[None]) -> bool:
    """Return whether a tier has answered; False for one that went down while it was asked. Raises GatewayFailed."""
    try:
        if call.ended:
            call.result()
            return True
    except GatewayFailed as problem:
        if _up(context, tier):
            cause = problem
            if process.wait(trial.spawned.engine, process.LAST_WORD_S):
                cause = GatewayFailed("The candidate gateway has exited.", hint=f"mlxq logs {trial.name}")
            raise GatewayFailed(
                f"With the new configuration: {cause.message}", done=LATER, hint=cause.hint
            ) from problem
    return False


def _expect_busy(context: Context, trial: Candidate, tier: Tier) -> None:
    """Raise GatewayFailed when a tier that gave no answer has nothing to do."""
    row = service.find(context.db, tier.engine.name)
    if row is None or row.state not in service.ROUTED:
        return
    key = secrets.read(context.home.secrets).get(secrets.TIER, "")
    with suppress(EngineFailed):  # one that does not say how it is cannot answer either
        status = probe.status(row.port, key, release=row.release)
        if not status.has_requests:
            raise GatewayFailed(
                f"With the new configuration: tier {tier.name} gave no answer within {ANSWERS_S:g} s.",
                done=LATER,
                hint=f"mlxq logs {trial.name}",
            )
    log.info("tier_not_proven", tier=tier.name, waited_s=ANSWERS_S)


def _up(context: Context, tier: Tier) -> bool:
    """Return whether a tier answers by what is proven: an engine of an earlier stack may still be at another port."""
    row = service.find(context.db, tier.engine.name)
    is_there = row is not None and row.state in service.ROUTED and row.port == tier.engine.port
    return is_there and tier.desired == "up"


def needed(context: Context) -> bool:
    """Return whether a gateway is running whose callers a faulty configuration would let down."""
    row = service.find(context.db, gateway.SERVICE)
    return row is not None and lifecycle.running(row) is not None
