"""Ask every engine, through the gateway, for a real answer, and for a second turn."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog import units
from state import ports, secrets, service, stack
from state.errors import EngineFailed, GatewayFailed
from state.stack import Tier
from tasks.plan import bench, gateway
from tasks.queue import Context, job
from tasks.supervision import own_requests, probe

ANSWER_S = 120.0
TURN_S = 60.0
"""Seconds for each of two turns; a machine that takes longer is not asked on, and nothing is known of its reuse."""
LONGEST_TURN_S = 5.0
"""Seconds that a turn may be expected to take; a machine without a GPU takes minutes, and set-up would wait for it."""
HELLO_TOKENS = 32
"""Tokens of the first question with its chat template, at least."""
WORDS = 4
"""Tokens asked for: enough to be an answer, quick on the slowest machine."""
LOG = "mlxq logs gateway"
OVER_A_STEP = 128
"""Tokens of the first turn beyond one prefill step: engines keep a hybrid's state at such steps alone."""


@job("smoke_test")
def smoke_test(context: Context) -> dict[str, Any]:
    """Get one completion from each engine by way of the gateway, with fallbacks off; then ask a second turn.

    An engine is asked by the first of its tiers; of the others the gateway has to know the name. What the second turn
    did not read again is kept in the service's row. What a user stopped is not asked.
    Returns {"endpoint", "tiers": {name: seconds}, "reused": {name: share or None}}. Raises GatewayFailed when a tier
    gives no answer of its own.
    """
    at = ports.listing(context.db)
    key = secrets.read(context.home.secrets).get(secrets.MASTER, "")
    tiers = stack.require(context.db)
    if _stopped(context, gateway.SERVICE):
        tiers = []
    tiers = [tier for tier in tiers if tier.desired == "up" and not _stopped(context, tier.engine.name)]
    first = [stack.served_by(tiers, engine.name)[0] for engine in stack.engines_of(tiers)]
    took: dict[str, float] = {}
    for done, tier in enumerate(first):
        context.report(f"asking {tier.name}", done=done, total=len(first), unit="engines")
        context.check()
        started = context.db.now()
        ask(at["gateway"], key, tier)
        took[tier.name] = round(context.db.now() - started, 2)
    _require_known(at["gateway"], key, [tier for tier in tiers if tier.name not in took])
    quick = [tier for tier in first if expected_turn_s(tier, took[tier.name]) <= LONGEST_TURN_S]
    reused = dict.fromkeys(took) | _reused(context, at["gateway"], key, quick)
    return {"endpoint": ports.endpoint(at), "tiers": took, "reused": reused}


def _stopped(context: Context, name: str) -> bool:
    """Return whether a user stopped a service, perhaps while the setup that ends with this job was running."""
    row = service.find(context.db, name)
    return row is not None and row.desired == "down"


def expected_turn_s(tier: Tier, hello_s: float) -> float:
    """Return the seconds that a first turn takes at most, by the seconds that the first question took."""
    return hello_s * _turn_tokens(tier) / HELLO_TOKENS


def _turn_tokens(tier: Tier) -> int:
    return min(tier.engine.prefill_step + OVER_A_STEP, tier.context // 2)


def _reused(context: Context, port: int, key: str, tiers: Sequence[Tier]) -> dict[str, float | None]:
    """Ask a second turn of engines, each by its first tier, and keep the shares."""
    shares: dict[str, float | None] = {}
    for done, tier in enumerate(tiers):
        context.report(f"asking {tier.name} a second turn", done=done, total=len(tiers), unit="engines")
        context.check()
        shares[tier.name] = second_turn(port, key, tier)
        service.update(context.db, tier.engine.name, reused=shares[tier.name])
    return shares


def _require_known(port: int, key: str, tiers: Sequence[Tier]) -> None:
    """Raise GatewayFailed where the gateway does not offer a tier."""
    if not tiers:
        return
    try:
        names = probe.models(port, key, ANSWER_S)
    except EngineFailed as problem:
        raise GatewayFailed(f"The gateway does not list its models: {problem.message}", hint=LOG) from problem
    if missing := [tier.name for tier in tiers if tier.name not in names]:
        raise GatewayFailed(f"The gateway does not offer {units.listed(missing)}.", hint=LOG)


def ask(port: int, key: str, tier: Tier) -> None:
    """Get one answer from one tier. Raises GatewayFailed with what came instead."""
    _check(_post(port, key, tier, [{"role": "user", "content": "Say hello."}], ANSWER_S), tier)


def second_turn(port: int, key: str, tier: Tier) -> float | None:
    """Return the share, 0 to 1, of a first turn's prompt that the second turn did not read again.

    The client sends its text back as it came, as most do, without what the model thought. None where it takes too
    long, or where someone else answered meanwhile.
    """
    text = bench.prompt(_turn_tokens(tier), uuid.uuid4().hex)
    talk: list[dict[str, str]] = [{"role": "user", "content": text}]
    try:
        first = _completion(_post(port, key, tier, talk, TURN_S), tier)
        words = first["choices"][0]["message"].get("content") or ""
        talk += [{"role": "assistant", "content": words}, {"role": "user", "content": "And what comes after it?"}]
        second = _completion(_post(port, key, tier, talk, TURN_S), tier)
    except (GatewayFailed, ValueError):  # ValueError: no JSON
        return None
    read = int(first["usage"]["prompt_tokens"])
    details: Mapping[str, Any] = second["usage"].get("prompt_tokens_details") or {}
    return round(min(1.0, int(details.get("cached_tokens") or 0) / read), 3) if read else None


@dataclass(frozen=True)
class _TierAnswer:
    """What came back."""

    status: int
    tier: str
    """Who answered."""
    text: str


def _post(port: int, key: str, tier: Tier, talk: Sequence[Mapping[str, str]], limit_s: float) -> _TierAnswer:
    """Send one chat to one tier alone. Raises GatewayFailed where nothing answers within `limit_s` seconds."""
    body = {"model": tier.name, "messages": talk, "max_tokens": WORDS, "temperature": 0, "disable_fallbacks": True}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", gateway.CHECK: "1"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        with own_requests.sending(tier.engine.port, WORDS) as answers:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            if answer.status == http.client.OK:
                answers.append(_json(text))
    except OSError as problem:
        raise GatewayFailed(f"The gateway on port {port} does not answer: {problem}.", hint=LOG) from problem
    finally:
        connection.close()
    return _TierAnswer(answer.status, answer.getheader("x-mlxq-tier", ""), text)


def _json(text: str) -> Any:
    """Return a body as JSON; None for one that is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _completion(answer: _TierAnswer, tier: Tier) -> dict[str, Any]:
    """Return the completion that `tier` itself gave. Raises GatewayFailed with what came instead, ValueError."""
    _check(answer, tier)
    return json.loads(answer.text)


def _check(answer: _TierAnswer, tier: Tier) -> None:
    """Raise GatewayFailed, with what came instead, unless `tier` itself answered."""
    if answer.status != http.client.OK:
        raise GatewayFailed(
            f"Tier {tier.name} gave no answer: HTTP {answer.status}, {reason(answer.text)}",
            hint=f"mlxq logs {tier.name}",
        )
    if answer.tier != tier.name:
        raise GatewayFailed(
            f"Tier {tier.name} gave no answer; {answer.tier or 'something unnamed'} answered instead.",
            hint=f"mlxq logs {tier.name}",
        )


def reason(text: str) -> str:
    """Return what an error's body says in words: the message of OpenAI's envelope, else the first 200 characters."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    first = " ".join(str(message).split())[:200].rstrip(".")
    return f"{first}." if first else "and it says no more."
