"""Whether a prompt fits a tier, for engines that take any length: counted by the engine's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalog import images
from tasks.gateway.engine_client import EngineClient
from tasks.gateway.images import header
from tasks.gateway.images.header import Header
from tasks.gateway.request_context import Call
from tasks.gateway.routes import Route

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
    sizes: list[int] = []
    extra = 0
    waiting: list[Any] = [body.get(name) for name in ("messages", "input", "prompt", "system", "instructions", "tools")]
    while waiting:
        match waiting.pop():
            case str() as text:
                texts.append(text)
            case [*parts]:
                waiting += parts
            case {"type": "image_url", "image_url": {"url": str() as url}}:
                sizes.append(_pixels(header.of_url(url)))
            case {"type": str() as kind} if kind in _PICTURES:
                sizes.append(images.IMAGE_PIXELS)
            case {**part}:
                extra += MESSAGE_TOKENS if "role" in part else 0
                waiting += part.values()
            case _:
                pass
    extra += sum(images.tokens(pixels, len(sizes)) for pixels in sizes)
    return "\n".join(reversed(texts)), extra


def _pixels(image: Header | None) -> int:
    return image.pixels if image else images.IMAGE_PIXELS
