"""A minimal client of the gateway: its key, and one streamed chat completion."""

from __future__ import annotations

import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, cast

import h11

from state import secrets
from state.classes import dataclass
from state.errors import GatewayFailed, MlxqError, NotRunning, NotSetUp, TimedOut
from state.paths import Home

ANSWER_S = 600.0
"""How long an answer may be awaited unless the user says otherwise; processing a long prompt takes minutes."""
FIRST_WORD_S = 3.0
"""After so much silence it is said what is waited for, and again whenever that changes."""
LOOK_S = 2.0
READ_BYTES = 65_536
_CLASS_NAMES = r"^(?:[\w.]*(?:Error|Exception)\s*[:-]\s*)+"
"""Class names of libraries that some errors of the cloud begin with."""


@dataclass(frozen=True)
class TokenCounts:
    """What an answer took, in tokens."""

    prompt: int
    cached: int
    """Those of the prompt that were not read again."""
    completion: int


def key(home: Home) -> str:
    """Return the gateway's master key. Raises NotSetUp if there is none yet."""
    master = secrets.read(home.secrets).get(secrets.MASTER)
    if master is None:
        raise NotSetUp("There is no key for the gateway yet.", hint="mlxq setup")
    return master


def stream(
    url: str,
    opener: str,
    body: dict[str, Any],
    *,
    limit_s: float = ANSWER_S,
    on_silence: Callable[[float], None] = lambda _: None,
    on_usage: Callable[[TokenCounts], None] = lambda _: None,
) -> Generator[str]:
    """Request one chat completion and yield its text as it arrives. Who stops reading stops the engine's work.

    `url` is the endpoint, `opener` the key. `on_silence` is called with the seconds since the request, again and again
    while no text comes; `on_usage` once, where the body asks for usage. Raises NotRunning if the gateway is down,
    TimedOut when `limit_s` seconds passed in silence, GatewayFailed with the gateway's message.
    """
    answer = _AnswerReader(url, opener, body)
    answer.start()
    try:
        yield from _read_pieces(answer, limit_s, on_silence, on_usage)
    finally:
        answer.close()


def _read_pieces(
    answer: _AnswerReader, limit_s: float, on_silence: Callable[[float], None], on_usage: Callable[[TokenCounts], None]
) -> Generator[str]:
    began = heard_at = time.monotonic()
    while True:
        silent_s = time.monotonic() - heard_at
        wait_s = min(FIRST_WORD_S - silent_s if silent_s < FIRST_WORD_S else LOOK_S, limit_s - silent_s)
        try:
            piece = answer.pieces.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            silent_s = time.monotonic() - heard_at
            if silent_s >= limit_s:
                raise TimedOut(
                    f"No answer within {limit_s:g} s; the request was cancelled.", hint="mlxq top --once"
                ) from None
            on_silence(time.monotonic() - began)
            continue
        if piece is None:
            return
        if isinstance(piece, MlxqError):
            raise piece
        heard_at = time.monotonic()
        if isinstance(piece, TokenCounts):
            on_usage(piece)
        else:
            yield piece


class _AnswerReader(threading.Thread):
    """Reads one answer, so that who waits for it can do something else meanwhile."""

    def __init__(self, url: str, opener: str, body: dict[str, Any]) -> None:
        super().__init__(name="answer", daemon=True)
        self.pieces: queue.SimpleQueue[str | TokenCounts | MlxqError | None] = queue.SimpleQueue()
        """The text as it arrives and its usage; at its end None, or the error that it ended with."""
        self._address, _, self._path = url.removeprefix("http://").partition("/")
        self._url = url
        self._connection = h11.Connection(h11.CLIENT)
        self._socket: socket.socket | None = None
        self._body = json.dumps(body | {"stream": True}).encode()
        self._headers = {
            "Host": self._address,
            "Authorization": f"Bearer {opener}",
            "Content-Type": "application/json",
            "Content-Length": str(len(self._body)),
        }

    def run(self) -> None:
        """Read until the end, or until the connection is closed."""
        try:
            for piece in self._read():
                self.pieces.put(piece)
            self.pieces.put(None)
        except MlxqError as problem:
            self.pieces.put(problem)

    def close(self) -> None:
        """Close the connection: the gateway stops the engine's work."""
        with suppress(OSError):  # it may have ended by itself
            if self._socket:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> Generator[str | TokenCounts]:
        """Ask, and yield what is answered. h11, as http.client takes twice as long to import."""
        host, _, port = self._address.partition(":")
        try:
            self._socket = socket.create_connection((host, int(port)))
            self._socket.sendall(self._request())
            status, content = self._answer(self._socket)
            if status != 200:  # noqa: PLR2004 (HTTP's OK)
                raise _refused(status, b"".join(content))
            yield from _pieces(content)
        except ConnectionRefusedError as problem:
            raise NotRunning(f"Nothing answers at {self._url}.", hint="mlxq up") from problem
        except (OSError, h11.RemoteProtocolError, ValueError, KeyError, TypeError) as problem:
            raise GatewayFailed(f"The gateway at {self._url} broke off: {problem}.", hint="mlxq status") from problem
        finally:
            if self._socket:
                self._socket.close()

    def _request(self) -> bytes:
        request = h11.Request(
            method="POST", target=f"/{self._path}/chat/completions", headers=list(self._headers.items())
        )
        events = (request, h11.Data(data=self._body), h11.EndOfMessage())
        return b"".join(self._connection.send(event) or b"" for event in events)

    def _answer(self, source: socket.socket) -> tuple[int, Iterable[bytes]]:
        """Return the status of the answer, and its body as it comes."""
        while True:
            match event := self._next_event(source):
                case h11.Response():
                    return event.status_code, self._content(source)
                case h11.ConnectionClosed():
                    raise h11.RemoteProtocolError("the connection was closed")
                case _:
                    pass

    def _content(self, source: socket.socket) -> Generator[bytes]:
        while isinstance(event := self._next_event(source), h11.Data):
            yield bytes(event.data)

    def _next_event(self, source: socket.socket) -> object:
        """Return the next part of the answer. Raises OSError, h11.RemoteProtocolError."""
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(source.recv(READ_BYTES))
        return event


def _lines(content: Iterable[bytes]) -> Generator[bytes]:
    rest = b""
    for piece in content:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    yield rest


def _pieces(content: Iterable[bytes]) -> Generator[str | TokenCounts]:
    """Yield the text of each server-sent event up to [DONE], and the usage. Raises GatewayFailed for an end before."""
    for raw in _lines(content):
        text = raw.decode("utf-8", "replace").strip()
        if text == "data: [DONE]":
            return
        if text.startswith("data:"):
            event = json.loads(text.removeprefix("data:"))
            if "error" in event:
                raise GatewayFailed(f"The answer broke off: {_message(event['error'])}", hint="mlxq status")
            yield from (piece for choice in event.get("choices", []) if (piece := choice["delta"].get("content")))
            if usage := event.get("usage"):
                yield _usage(usage)
    raise GatewayFailed("The answer broke off: the gateway closed the connection.", hint="mlxq status")


def _usage(usage: dict[str, Any]) -> TokenCounts:
    details: dict[str, Any] = usage.get("prompt_tokens_details") or {}
    return TokenCounts(usage["prompt_tokens"], details.get("cached_tokens") or 0, usage["completion_tokens"])


def _refused(status: int, body: bytes) -> GatewayFailed:
    try:
        return GatewayFailed(f"The gateway refused: {_message(json.loads(body)['error'])}", hint="mlxq status")
    except (ValueError, KeyError, TypeError):
        return GatewayFailed(f"The gateway answered HTTP {status}.", hint="mlxq status")


def _message(error: Any) -> str:
    """Return what an error says, without the class names of libraries."""
    message = cast("dict[str, Any]", error).get("message", "") if isinstance(error, dict) else error
    return re.sub(_CLASS_NAMES, "", str(message))
