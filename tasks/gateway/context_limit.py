"""Whether a prompt fits a tier, told before the tier is asked: vllm-mlx 0.6.0 itself takes any length.

LiteLLM's own check (enable_pre_call_checks) counts every prompt, however short, in another thread, and opens the
pictures that a prompt links to. It took a quarter of the gateway's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tasks.gateway.request_context import Call

_PICTURE = b'"image'


async def excess(call: Call, content: bytes, body: Mapping[str, Any], context: int) -> int | None:
    """Give how many tokens a prompt has when `context` tokens are too few for it, else None.

    A token is at least one byte, so what has fewer bytes need not be counted; but a picture's link is shorter than
    the picture. What is counted for one tier is known to the next.
    """
    if len(content) <= context and _PICTURE not in content:
        return None
    if call.length is None:
        call.length = await asyncio.to_thread(_count, body)
    return call.length if call.length > context else None


def _count(body: Mapping[str, Any]) -> int:
    """Count with LiteLLM's tokenizer, which is not the model's: near enough, and the same for every tier."""
    import litellm

    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt")}]
    try:
        return litellm.token_counter(messages=messages, tools=body.get("tools"), use_default_image_token_count=True)
    except (ValueError, TypeError, KeyError, AttributeError):
        return 0  # of a shape that only the engine can judge
