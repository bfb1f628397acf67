"""What each engine can do, as far as the gateway has to know it: all that depends on an engine stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "chat", "completions", "responses", "messages"
COUNT_TOKENS, EMBEDDINGS, RERANK = "count_tokens", "embeddings", "rerank"


@dataclass(frozen=True)
class RelayAbilities:
    """One engine's abilities. What it lacks the gateway adds, checks or refuses."""

    dialects: frozenset[str]
    """Dialects to relay as they are. Messages that are not among them go through chat."""
    stop_strings: bool
    """Whether it ends an answer at a stop string."""
    json_schema: bool
    """Whether it holds an answer to a schema."""
    forced_tools: bool
    """Whether `tool_choice` required, or a named tool, is enforced."""
    logprobs: bool
    frequency_penalty: bool
    context_check: bool
    """Whether it refuses a prompt that is longer than its context."""
    response_formats: bool
    """Whether its Responses hold an answer to JSON, or to a schema."""
    response_images: bool
    """Whether its Responses take pictures."""
    silence_s: float | None
    """Longest silence of a healthy stream in seconds; None where it is silent while it reads a prompt."""


_COMMON = frozenset({CHAT, COMPLETIONS, RESPONSES, COUNT_TOKENS})

VLLM_MLX = RelayAbilities(
    # Measured of 0.6.0: its own /v1/messages stream has no input tokens, says end_turn where max_tokens cut the
    # answer, and shows tool calls only at the end; its chat stream has all of these.
    dialects=_COMMON,
    stop_strings=False,
    json_schema=False,
    forced_tools=False,
    logprobs=False,
    frequency_penalty=False,
    context_check=False,
    response_formats=False,
    response_images=False,
    silence_s=20.0,  # four of its 5 s heartbeats
)
RAPID_MLX = RelayAbilities(
    dialects=_COMMON | {MESSAGES},
    stop_strings=True,
    json_schema=False,  # catalog/engines.yaml: on Metal alone, which routes.py adds
    forced_tools=True,
    logprobs=True,
    frequency_penalty=True,
    context_check=True,
    response_formats=True,
    response_images=True,
    silence_s=20.0,
)
ENGINES: Mapping[str, RelayAbilities] = {"vllm-mlx": VLLM_MLX, "rapid-mlx": RAPID_MLX}
