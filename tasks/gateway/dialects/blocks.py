"""A chat's stream as blocks, one after another: thoughts, words and tool calls. Clients cannot read blocks that mix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from tasks.gateway.dialects.json_values import first, obj, objects

Kind = Literal["thoughts", "words", "call"]
Key = tuple[Kind, int]


@dataclass(frozen=True)
class Piece:
    """A part of one block."""

    kind: Kind
    text: str
    at: int = 0
    """The index of its tool call; 0 for words."""
    id: str | None = None
    """Of the tool call, as its name; its first piece has both."""
    name: str | None = None

    @property
    def key(self) -> Key:
        """The block that it belongs to."""
        return self.kind, self.at


class BlockEncoder:
    """Turns the chunks of a chat into a dialect's events: what comes while a tool call is not whole follows it."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self._open: Piece | None = None
        """The first piece of the open block."""
        self._texts: list[str] = []
        """What of the open block has come."""
        self._whole = False
        """Whether the open call's arguments are JSON; nothing but white space can follow."""
        self._called: set[Key] = set()
        """The tool calls that are closed."""
        self._later: dict[Key, list[Piece]] = {}

    def _opened(self, piece: Piece) -> bytes:
        """Return the events by which the block of a piece begins."""
        raise NotImplementedError

    def _added(self, piece: Piece) -> bytes:
        """Return the event of a piece's text."""
        raise NotImplementedError

    def _closed(self, piece: Piece, text: str) -> bytes:
        """Return the events by which a block ends. `piece`: its first one; `text`: all of it."""
        raise NotImplementedError

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """Return the events of one chunk."""
        self.usage = chunk.get("usage") or self.usage
        choice = first(chunk.get("choices"))
        self.finish = choice.get("finish_reason") or self.finish
        return b"".join(map(self._take, pieces(obj(choice.get("delta")))))

    def rest(self) -> bytes:
        """Return the events of all that was held back, and of the end of the last block."""
        events = b"".join([self._written(piece) for pieces in self._later.values() for piece in pieces])
        return events + self._close()

    def _take(self, piece: Piece) -> bytes:
        """Return the events of a piece; none yet where a tool call has to be whole before it."""
        if piece.key in self._called:
            return b""
        if not self._is_open(piece) and (self._later or not self._may_close()):
            self._later.setdefault(piece.key, []).append(piece)
            return b""
        return self._written(piece)

    def _is_open(self, piece: Piece) -> bool:
        return self._open is not None and self._open.key == piece.key

    def _may_close(self) -> bool:
        """Return whether the open block may end here."""
        if self._open is None or self._open.kind != "call":
            return True
        if not self._whole and self._texts:
            self._whole = _is_json("".join(self._texts))
        return self._whole

    def _written(self, piece: Piece) -> bytes:
        """Return the events of a piece, with those that open its block where another one is open."""
        events = b""
        if not self._is_open(piece):
            events += self._close()
            self._open, self._texts, self._whole = piece, [], False
            events += self._opened(piece)
        if not piece.text:
            return events
        self._texts.append(piece.text)
        return events + self._added(piece)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        piece, self._open = self._open, None
        if piece.kind == "call":
            self._called.add(piece.key)
        return self._closed(piece, "".join(self._texts))


def pieces(delta: Mapping[str, Any]) -> Iterator[Piece]:
    """Yield the pieces in a part of a chat's answer, or in a whole message."""
    if thoughts := delta.get("reasoning_content") or delta.get("reasoning"):
        yield Piece("thoughts", thoughts)
    if words := delta.get("content"):
        yield Piece("words", words)
    for call in objects(delta.get("tool_calls")):
        function = obj(call.get("function"))
        arguments = function.get("arguments") or ""
        yield Piece("call", arguments, int(call.get("index") or 0), call.get("id"), function.get("name"))


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
