"""What models thought before their turns, kept for the clients that do not send it back.

A prompt in which a turn lacks its thoughts is another prompt from that turn on, and is read again from there. They are
kept in memory alone, within a time and a size, and are found by the same key with the same conversation only: a history
that was changed gets nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.gateway.dialects import turns
from tasks.gateway.dialects.turns import Message

KEPT_S = 2 * 3600.0
"""Seconds after its last use; a conversation that pauses for longer is read again once."""
LARGEST_BYTES = 32 * 2**20
"""Of all thoughts together: some 8,000 turns of 1,000 tokens."""
LARGEST_OF_A_KEY = 8 * 2**20
ENTRY_BYTES = 200
"""What an entry takes beside its text."""


@dataclass
class _KeptThoughts:
    """The thoughts of one turn."""

    key: str
    text: str
    used_at: float

    @property
    def size(self) -> int:
        return len(self.text.encode()) + ENTRY_BYTES


class ReasoningStore:
    """Thoughts by the conversation that they belong to, the least recently used first."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        largest: int = LARGEST_BYTES,
        largest_of_a_key: int = LARGEST_OF_A_KEY,
    ) -> None:
        self._clock = clock
        self._largest = largest
        self._largest_of_a_key = largest_of_a_key
        self._entries: OrderedDict[bytes, _KeptThoughts] = OrderedDict()
        self._sizes: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(self._sizes.values())

    def size_of(self, key: str) -> int:
        """Return the bytes kept of one key."""
        return self._sizes.get(key, 0)

    def keep(self, key: str, conversation: Sequence[Message], turn: Message, thoughts: str) -> None:
        """Keep what was thought before `turn`, which follows `conversation`, in place of what was kept for it."""
        entry = _KeptThoughts(key, thoughts, self._clock())
        digest = turns.digests(key.encode(), [*conversation, turn])[-1]
        self._drop(digest)
        if not thoughts.strip() or entry.size > self._largest_of_a_key:
            return
        self._entries[digest] = entry
        self._sizes[key] = self._sizes.get(key, 0) + entry.size
        self._bound(key)

    def put_back(self, key: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages with the thoughts of those turns that lack them."""
        self._forget_old()
        if key not in self._sizes:
            return [dict(message) for message in messages]
        digests = turns.digests(key.encode(), messages)
        return [self._with_thoughts(message, digest) for message, digest in zip(messages, digests, strict=True)]

    def _with_thoughts(self, message: Message, digest: bytes) -> dict[str, Any]:
        entry = self._entries.get(digest)
        if entry is None or message["role"] != "assistant":
            return dict(message)
        entry.used_at = self._clock()
        self._entries.move_to_end(digest)
        return dict(message) if turns.thoughts(message) else {**message, "reasoning_content": entry.text}

    def _bound(self, key: str) -> None:
        """Forget the least recently used of a key that has too many, then of all."""
        while self._sizes[key] > self._largest_of_a_key:
            self._drop(next(digest for digest, entry in self._entries.items() if entry.key == key))
        while self.size > self._largest:
            self._drop(next(iter(self._entries)))

    def _forget_old(self) -> None:
        before = self._clock() - KEPT_S
        while self._entries:
            digest, entry = next(iter(self._entries.items()))
            if entry.used_at > before:
                break
            self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is None:
            return
        size = self._sizes[entry.key] - entry.size
        if size > 0:
            self._sizes[entry.key] = size
        else:
            del self._sizes[entry.key]
