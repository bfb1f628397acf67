"""Errors as the caller's client expects them: OpenAI's shape, or Anthropic's under /v1/messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error"}

_WRAPPING = re.compile(r"^(?:litellm\.)?(?:\w*(?:Error|Exception|Timeout)\b\s*[:-]\s*|OpenAIException - )+")
_ROUTING = re.compile(
    r"\.?\s*(?:Received Model Group=|No fallback model group found|Available Model Group|LiteLLM: model group).*",
    re.DOTALL,
)
_OVERFLOW = re.compile(r"ContextWindowExceeded|context_length_exceeded|maximum context length", re.IGNORECASE)
_TRY_LATER_S = 5
"""After this the router asks a failed tier again."""


@dataclass(frozen=True)
class Refusal:
    """Why a request gets no answer. An answer itself, not an exception."""

    status: int
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def body(self, path: str) -> bytes:
        """Write it in the dialect of the path."""
        if path.startswith("/v1/messages"):
            kind = _ANTHROPIC_TYPES.get(self.status, _kind(self.status))
            return orjson.dumps({"type": "error", "error": {"type": kind, "message": self.message}})
        kind = _OPENAI_TYPES.get(self.status, _kind(self.status))
        return orjson.dumps({"error": {"message": self.message, "type": kind, "param": None, "code": self.code}})


def _kind(status: int) -> str:
    return "invalid_request_error" if status < 500 else "api_error"  # noqa: PLR2004 - where HTTP draws the line


def overflow(context: int | None = None) -> Refusal:
    """Say that the prompt is too long for every tier, in the words by which clients know it."""
    limit = f" This server's maximum context length is {context} tokens." if context else ""
    return Refusal(400, f"The prompt is too long for every tier.{limit} Shorten it.", "context_length_exceeded")


def overlong(tokens: int, context: int) -> Refusal:
    """Say that one tier is too small, in words by which LiteLLM takes the prompt to a larger one."""
    message = f"This model's maximum context length is {context} tokens, and the prompt has {tokens}."
    return Refusal(400, message, "context_length_exceeded")


def unavailable(failures: Mapping[str, str]) -> Refusal:
    """Say that no tier can answer now, why, and what to do."""
    why = "; ".join(f"{tier}: {problem}" for tier, problem in failures.items()) or "all failed a moment ago"
    message = f"No tier can answer now ({why}). mlxq restarts them; to see how far it is, run: mlxq status"
    return Refusal(503, message, "no_tier_available", {"retry-after": str(_TRY_LATER_S)})


def about_length(message: str) -> bool:
    """Tell whether an error is about a number of tokens: the one kind of bad request that another tier may take."""
    return bool(_OVERFLOW.search(message)) or "token" in message


def translate(status: int, content: bytes, failures: Mapping[str, str], largest: int) -> Refusal:
    """Turn LiteLLM's error answer into ours. `largest`: the largest tier's context in tokens."""
    account = told(content)
    message: str = account["message"]
    if _OVERFLOW.search(message):
        return overflow(largest)
    if account.get("type") == "all_deployments_in_cooldown" or "No deployments available" in message:
        return unavailable(failures)
    if failures and (status >= 500 or status == 429):  # noqa: PLR2004 - server's fault, or too busy
        return unavailable(failures)
    code = account.get("code")
    named = str(code) if code and not str(code).isdigit() else None
    return Refusal(status, plain(message), named)


def plain(message: str) -> str:
    """Take LiteLLM's class names and its account of the routing off a message."""
    return _ROUTING.sub("", _WRAPPING.sub("", message)).strip() or message


def told(content: bytes) -> dict[str, Any]:
    """Read an error out of whatever came: OpenAI's shape, FastAPI's `detail`, or text. It has a `message` always."""
    try:
        parsed: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {"message": content.decode(errors="replace")[:500] or "The request failed."}
    outer: dict[str, Any] = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {"detail": parsed}
    found = outer.get("error", outer.get("detail", outer))
    inner: dict[str, Any] = cast("dict[str, Any]", found) if isinstance(found, dict) else {"message": found}
    message = inner.get("message", inner.get("error", inner))
    return {**inner, "message": message if isinstance(message, str) else orjson.dumps(message).decode()}
