"""Ask every tier, through the gateway, for a real answer."""

from __future__ import annotations

import http.client
import json
from typing import Any

from state import ports, secrets, stack
from state.errors import GatewayFailed, NotSetUp
from state.stack import Tier
from tasks.queue import Context, job

ANSWER_S = 120.0
WORDS = 4
"""Tokens asked for: enough to be an answer, quick on the slowest machine."""


@job("smoke_test")
def smoke_test(context: Context) -> dict[str, Any]:
    """Get one completion from each tier by way of the gateway, with fallbacks off.

    Returns {"endpoint", "tiers": {name: seconds}}. Raises GatewayFailed when a tier gives no answer of its own.
    """
    at = ports.listing(context.db)
    key = secrets.read(context.home.secrets).get(secrets.MASTER, "")
    tiers = stack.tiers(context.db)
    if not tiers:
        raise NotSetUp("There is no stack to verify.", hint="mlxq setup")
    took: dict[str, float] = {}
    for done, tier in enumerate(tiers):
        context.report(f"asking {tier.name}", done=done, total=len(tiers), unit="tiers")
        context.check()
        started = context.db.now()
        ask(at["gateway"], key, tier)
        took[tier.name] = round(context.db.now() - started, 2)
    return {"endpoint": ports.endpoint(at), "tiers": took}


def ask(port: int, key: str, tier: Tier) -> None:
    """Get one answer from one tier. Raises GatewayFailed with what came instead."""
    body = {
        "model": tier.name,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": WORDS,
        "disable_fallbacks": True,
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    except OSError as problem:
        raise GatewayFailed(
            f"The gateway on port {port} does not answer: {problem}.", hint="mlxq logs gateway"
        ) from problem
    finally:
        connection.close()
    responder = answer.getheader("x-mlxq-tier", "")
    if answer.status != http.client.OK:
        raise GatewayFailed(
            f"Tier {tier.name} gave no answer: HTTP {answer.status}, {reason(text)}", hint=f"mlxq logs {tier.name}"
        )
    if responder != tier.name:
        raise GatewayFailed(
            f"Tier {tier.name} gave no answer; {responder or 'something unnamed'} answered instead.",
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
