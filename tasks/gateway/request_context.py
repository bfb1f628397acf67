"""One request on its way through the gateway: who asks, what was tried, what it cost.

The door makes it, the wire fills it in, the door counts it. It travels in a context variable, which LiteLLM's
tasks inherit; so a fallback's attempts meet the same object.
"""

from __future__ import annotations

import hashlib
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

from tasks.gateway.errors import Refusal


@dataclass
class Call:
    """One request of a caller."""

    path: str
    key: str = ""
    """The name of the caller's key; never the key."""
    asked: str = ""
    """The model name that the caller sent."""
    body: bytes = b""
    length: int | None = None
    """The prompt's tokens, the same for every tier; None until they had to be counted."""
    began: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    """How long a background request stood back."""
    first_byte_s: float | None = None
    """When the first words came, or the whole answer where it is not streamed."""
    tried: list[str] = field(default_factory=list[str])
    """Tiers that got the request, in order; the last one answered."""
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """What went wrong at which tier, in words for a person."""
    refusal: Refusal | None = None
    """What the wire found; better told than LiteLLM's account of it."""
    settled: bool = False
    """Whether the refusal is the request's own fault, so that no other tier need be asked."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0

    def heard(self) -> None:
        """Note that words have come."""
        if self.first_byte_s is None:
            self.first_byte_s = time.monotonic() - self.began

    @cached_property
    def fingerprint(self) -> str:
        """What two sendings of the same request have in common."""
        return hashlib.sha256(self.path.encode() + b"\0" + self.body).hexdigest()

    @property
    def tier(self) -> str:
        """Who answered, or was asked last; empty when nobody was."""
        return self.tried[-1] if self.tried else ""


CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)
