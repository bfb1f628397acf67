"""Errors as the caller's client expects them: OpenAI's shape, or Anthropic's under /v1/messages.

All words are ours: what an engine or the cloud says of itself stays in their logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from state.errors import MlxqError

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error"}
_OVERFLOW = re.compile(
    rb"context_length_exceeded|maximum context length|context (?:length|window)|prompt (?:is )?too long", re.IGNORECASE
)
_NO_CALL = re.compile(rb"tool_choice")
_NO_SCHEMA = re.compile(rb"invalid_(?:response_format|strict)_schema|strict_schema_required")
_MISMATCH = re.compile(rb"schema_violation|invalid_response_format_output|invalid_json")
"""What engines say where a model did not do what the request orders: the order itself has passed the checks."""
_NO_IMAGE = re.compile(rb'"invalid_image"|Failed to process image')
RETRY_AFTER_S = 5


@dataclass(frozen=True)
class Refusal:
    """Why a request gets no answer. An answer itself, not an exception."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    """The field at fault, as `messages[0].content`."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def payload(self, *, anthropic: bool) -> dict[str, Any]:
        """Return the body in one of the two shapes."""
        types = _ANTHROPIC_TYPES if anthropic else _OPENAI_TYPES
        kind = types.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")  # noqa: PLR2004 - where HTTP draws the line
        if anthropic:
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self, *, anthropic: bool) -> bytes:
        """Return the body as JSON."""
        return orjson.dumps(self.payload(anthropic=anthropic))


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """Return the refusal of a field's value."""
    return Refusal(400, message, code, param)


def unsupported(param: str, reason: str) -> Refusal:
    """Return the refusal of a field that is valid and that mlxq does not carry out."""
    return Refusal(400, f"`{param}` is not supported: {reason}", "unsupported_parameter", param)


def not_allowed(key: str, name: str) -> Refusal:
    """Return the refusal of a model that a key may not ask for."""
    return Refusal(403, f"The key {key} may not ask for {name}.", "model_not_allowed", "model")


def state_unavailable(problem: MlxqError) -> Refusal:
    """Return the refusal of what needs state.db, which cannot be used now."""
    return Refusal(503, f"{problem.message} Try again later.", "state_unavailable")


def overflow(context: int) -> Refusal:
    """Return the refusal of a prompt that is too long for every tier, in the words by which clients know it."""
    message = f"The prompt is too long: this server's maximum context length is {context} tokens. Shorten it."
    return Refusal(400, message, "context_length_exceeded", "messages")


def unavailable(failures: Mapping[str, str]) -> Refusal:
    """Return the refusal where no tier can answer now: why, and what to do."""
    reasons = "; ".join(f"{tier}: {problem}" for tier, problem in failures.items())
    message = f"No tier is available ({reasons}). mlxq is restarting them; check: mlxq status"
    return Refusal(503, message, "no_tier_available", headers={"retry-after": str(RETRY_AFTER_S)})


def stopped(tier: str) -> Refusal:
    """Return the refusal of a request for a single tier that the user stopped."""
    return Refusal(503, f"{tier} is stopped. To start it, run: mlxq up {tier}", "tier_stopped")


def busy(retry_after: str) -> Refusal:
    """Return the refusal where every tier has as many requests as it takes."""
    return Refusal(429, "Every tier is busy. Try again later.", "engines_busy", headers={"retry-after": retry_after})


def broken_off(tier: str) -> Refusal:
    """Return the error that ends a stream whose engine failed after its first words."""
    return Refusal(500, f"{tier} broke off in the middle of this answer.", "stream_broken")


def refused_by_engine(tier: str, status: int) -> Refusal:
    """Return the refusal of a request that passed the gateway's checks and not the engine's."""
    message = f"The engine of {tier} refused this request with HTTP {status}. Its reason is in: mlxq logs {tier}"
    return Refusal(status if status in {413, 422} else 400, message, "refused_by_engine")


class NotAsAsked(Exception):
    """An answer does not keep to what the request asks for."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def without_call() -> Refusal:
    """Return the refusal of an answer that calls no tool though `tool_choice` asks for a call."""
    message = "The model answered without the tool call that `tool_choice` asks for."
    return Refusal(422, message, "tool_call_missing", "tool_choice")


def mismatch(fault: str = "") -> Refusal:
    """Return the refusal of an answer that does not match its schema; `fault` says where."""
    if not fault:
        return Refusal(422, "The model's answer does not match the schema.", "schema_mismatch")
    return Refusal(422, f"The model's answer does not match the schema: {fault}", "schema_mismatch")


def about_answer(content: bytes) -> Refusal | None:
    """Return the refusal where an engine's error says that the model did not answer as it was told to, else None.

    Neither is the tier's failure, nor would another tier do better.
    """
    if _NO_SCHEMA.search(content):
        return Refusal(400, "The engine cannot hold an answer to this JSON schema.", "invalid_json_schema")
    if _NO_CALL.search(content):
        return without_call()
    if _NO_IMAGE.search(content):
        return Refusal(400, "An image of this request could not be decoded: it is damaged.", "invalid_image")
    return mismatch() if _MISMATCH.search(content) else None


def about_length(content: bytes) -> bool:
    """Return whether an engine's error says that the prompt is too long: another tier may take it."""
    return bool(_OVERFLOW.search(content))
