"""One request on its way through the gateway: who asks, what was tried, what it cost."""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property


@dataclass
class Call:
    """One request of a caller."""

    path: str
    key: str = ""
    """The name of the caller's key; never the key."""
    store: bool = True
    """Whether engines may keep its prompt on disk, and the gateway its thoughts."""
    asked: str = ""
    """The model name that the caller sent."""
    body: bytes = b""
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    length: int | None = None
    """The prompt's tokens, the same for every tier; None until they had to be counted."""
    began: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    """How long a background request waited for others."""
    loaded_s: float = 0.0
    """How long it waited for its model to be loaded."""
    first_byte_s: float | None = None
    """When the first words came, or the whole answer where it is not streamed."""
    tried: list[str] = field(default_factory=list[str])
    """Tiers that got the request, in order; the last one answered."""
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """What went wrong at which tier, in words for a user."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that were not read again."""
    status: int = 0
    check: bool = False
    """Whether mlxq itself asks, to test a tier; counted nowhere."""
    batch: bool = False
    """Whether it is a line of a batch, which anyone's request interrupts."""
    local: bool = False
    """Whether the cloud must not answer it."""
    disconnected: bool = False
    """Whether the client has closed its connection."""

    def restart(self) -> None:
        """Forget what was tried, as it was interrupted and begins again."""
        self.tried, self.failures, self.first_byte_s = [], {}, None

    def heard(self) -> None:
        """Record that the first words have come."""
        if self.first_byte_s is None:
            self.first_byte_s = time.monotonic() - self.began

    @cached_property
    def fingerprint(self) -> str:
        """What two sendings of the same request have in common."""
        return hashlib.sha256(self.path.encode() + b"\0" + self.body).hexdigest()

    @property
    def tier(self) -> str:
        """Who answered, or was asked last; empty when no tier was."""
        return self.tried[-1] if self.tried else ""
