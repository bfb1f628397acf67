"""How much of a conversation an engine reads again: two turns are asked, and what the second one reused is counted."""

from __future__ import annotations

import uuid
from typing import Any, cast

from state.errors import EngineFailed
from tasks.plan import bench
from tasks.supervision import probe

TURN_TOKENS = 320
"""Tokens of the first turn: vllm-mlx keeps no prompt under 128, and the exact count does not matter."""
ANSWER_S = 300.0
CHAT = "/v1/chat/completions"


def share(
    port: int, key: str, model: str, release: str, *, tokens: int = TURN_TOKENS, answer_s: float = ANSWER_S
) -> float:
    """Return the share, 0 to 1, of a first turn's prompt that the second turn did not read again.

    By what `usage` tells, else by what the engine counts in its status; an engine that works for others meanwhile
    counts their tokens too, so that the share is no more than 1. Raises EngineFailed, Refused, Silent.
    """
    talk: list[dict[str, str]] = [{"role": "user", "content": bench.prompt(tokens, uuid.uuid4().hex)}]
    first = _ask(port, key, model, talk, answer_s)
    before = probe.status(port, key, release=release).cached_tokens
    talk += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And what comes after it?"}]
    second = _ask(port, key, model, talk, answer_s)
    details: dict[str, Any] = second.get("prompt_tokens_details") or {}
    reported = details.get("cached_tokens")
    counted = probe.status(port, key, release=release).cached_tokens - before
    read = int(first.get("prompt_tokens") or 0)
    if not read:
        raise EngineFailed("The engine does not say how many tokens it read.")
    return round(min(1.0, (reported if isinstance(reported, int) else max(0, counted)) / read), 3)


def _ask(port: int, key: str, model: str, talk: list[dict[str, str]], answer_s: float) -> dict[str, Any]:
    """Return the `usage` of an answer of one token. Raises EngineFailed."""
    wanted = {"model": model, "messages": talk, "max_tokens": 1, "temperature": 0}
    answer = probe.ask(port, CHAT, key, answer_s, wanted)
    if answer.status != 200:  # noqa: PLR2004 - HTTP
        raise EngineFailed(f"The engine answered a request with HTTP {answer.status}.")
    if not isinstance(answer.body, dict):  # one that dies after the headers were sent
        raise EngineFailed("The engine's answer broke off.")
    body = cast("dict[str, Any]", answer.body)
    return body.get("usage") or {}
