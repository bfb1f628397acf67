"""Try a new configuration of the gateway on a port of its own, while the running gateway goes on answering."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from state import secrets, service
from state.errors import GatewayFailed
from state.stack import Tier
from tasks import upkeep, verify
from tasks.plan import gateway
from tasks.queue import Context
from tasks.world import ports, probe, process
from tasks.world.process import Identity

NAME = "gateway-proof"
"""Its log, and its mark in the environment: nobody takes it for the gateway."""
LOOK_S = 0.1
LATER = "The running gateway was left as it is."


def prove(context: Context, config: Path, tiers: Sequence[Tier]) -> int:
    """Start a gateway with `config`, get an answer from each tier that is up, and end it; give how many answered.

    Raises GatewayFailed when it does not start or such a tier does not answer.
    """
    key = secrets.read(context.home.secrets)[secrets.MASTER]
    port = ports.spare()
    answered = 0
    with _started(context, config, port) as trial:
        _await_ready(context, trial, port)
        for tier in tiers:
            context.report("proving", done=answered, total=len(tiers), unit="tiers")
            answered += _answers(context, port, key, tier)
    return answered


@contextmanager
def _started(context: Context, config: Path, port: int) -> Generator[Identity]:
    """Run a gateway for a while; also end one that a killed worker left behind."""
    home, log = context.home, context.home.log(NAME)
    for left in process.find_orphans(str(home.root), NAME):
        process.stop(left, upkeep.HUNG_GRACE_S)
    plan = upkeep.gateway_plan(context.db, home, config, port)
    log.unlink(missing_ok=True)
    trial = process.spawn(plan.argv, {**plan.environment(0), "MLXQ_SERVICE": NAME}, log, home.run, NAME).engine
    try:
        yield trial
    finally:
        process.stop(trial, upkeep.HUNG_GRACE_S)


def _await_ready(context: Context, trial: Identity, port: int) -> None:
    until = time.monotonic() + upkeep.GATEWAY_START_S
    while not _ready(port):
        context.report("starting a gateway on a second port")
        context.check()
        if process.wait(trial, LOOK_S) or time.monotonic() > until:
            raise GatewayFailed(
                "A gateway with the new configuration does not start.", done=LATER, hint=f"mlxq logs {NAME}"
            )


def _ready(port: int) -> bool:
    try:
        return probe.gateway_ready(port)
    except probe.Silent:  # it has just opened the port, on a busy machine
        return False


def _answers(context: Context, port: int, key: str, tier: Tier) -> bool:
    """Tell whether the tier answers; False for one that is not up, or went down while it was asked."""
    if not _up(context, tier):
        return False
    try:
        verify.ask(port, key, tier)
    except GatewayFailed as problem:
        if not _up(context, tier):
            return False
        raise GatewayFailed(
            f"With the new configuration: {problem.message}", done=LATER, hint=problem.hint
        ) from problem
    return True


def _up(context: Context, tier: Tier) -> bool:
    found = service.find(context.db, tier.name)
    return found is not None and found.doing in service.ROUTED


def needed(context: Context) -> bool:
    """Tell whether a gateway is running whose callers a faulty configuration would let down."""
    found = service.find(context.db, gateway.SERVICE)
    return found is not None and upkeep.running(found) is not None
