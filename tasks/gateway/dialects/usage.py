"""The `usage` of an answer in each dialect: how many tokens were read, written, and not read again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.gateway.dialects.json_values import obj


@dataclass(frozen=True)
class Tokens:
    """The tokens of one request."""

    prompt: int = 0
    """Of the whole prompt, also those that were not read again."""
    answer: int = 0
    cached: int | None = None
    """Tokens of the prompt that were not read again; None where nothing says so."""

    def after(self, before: Tokens | None) -> Tokens:
        """Return these figures, and those of an earlier event where this one has none."""
        if before is None:
            return self
        cached = before.cached if self.cached is None else self.cached
        return Tokens(self.prompt or before.prompt, self.answer or before.answer, cached)


def read(value: Any) -> Tokens | None:
    """Return the tokens that a `usage` of OpenAI's says; None where there is none."""
    usage = obj(value)
    if not usage:
        return None
    prompt, answer = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return Tokens(prompt, answer, obj(usage.get("prompt_tokens_details")).get("cached_tokens"))


def with_cached(usage: Mapping[str, Any], cached: int) -> dict[str, Any]:
    """Return the `usage` of a chat or a completion that says how much of the prompt was not read again."""
    name = "prompt_tokens_details"
    return {**usage, name: {**obj(usage.get(name)), "cached_tokens": cached}}


class ReuseSource(Protocol):
    """Where the number of tokens that were not read again comes from, for one request."""

    def look(self) -> None:
        """Begin to find it out; called as the first words come."""
        ...

    async def settle(self) -> None:
        """Wait until it is known, or will not be; called before `cached`."""
        ...

    def cached(self, tokens: Tokens) -> int:
        """Return the number for a request whose answer says `tokens`."""
        ...
