"""Whether a prompt fits a tier, for engines that take any length: counted by the engine's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.gateway.engine_client import EngineClient
from tasks.gateway.request_context import Call
from tasks.gateway.routes import Route

IMAGE_TOKENS = 1000
"""What a picture counts for; its bytes are not read."""
MESSAGE_TOKENS = 8
"""What a chat template puts around one message."""
_PICTURES = frozenset({"image", "image_url", "input_image"})


async def excess(call: Call, content: bytes, body: Mapping[str, Any], route: Route, client: EngineClient) -> int | None:
    """Return how many tokens a prompt has when the tier's context is too small for it, else None.

    A token is at least one byte, so what has fewer bytes need not be counted; but a picture's bytes say nothing.
    The count of one tier is kept for the next.
    """
    if len(content) <= route.context and b'"image' not in content:
        return None
    if call.length is None:
        text, extra = words(body)
        if len(text) + extra <= route.context:
            return None
        counted = await client.count_tokens(route, text)
        if counted is None:
            return None  # an engine that cannot count answers nothing either
        call.length = counted + extra
    return call.length if call.length > route.context else None


def words(body: Mapping[str, Any]) -> tuple[str, int]:
    """Return all the text of a request, and the tokens to add for what is no text.

    Not by recursion: a body may be nested deeper than Python's stack.
    """
    texts: list[str] = []
    extra = 0
    waiting: list[Any] = [body.get(name) for name in ("messages", "input", "prompt", "system", "instructions", "tools")]
    while waiting:
        match waiting.pop():
            case str() as text:
                texts.append(text)
            case [*parts]:
                waiting += parts
            case {"type": str() as kind} if kind in _PICTURES:
                extra += IMAGE_TOKENS
            case {**part}:
                extra += MESSAGE_TOKENS if "role" in part else 0
                waiting += part.values()
            case _:
                pass
    return "\n".join(reversed(texts)), extra
