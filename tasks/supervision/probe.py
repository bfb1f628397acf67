"""Ask a service how it is: short questions over loopback, each with a hard end.

One connection a question, over a plain socket: the worker asks four services every two seconds, and an HTTP
client costs it ten times the CPU. What the answers mean is decided in tasks/plan/health.py.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from state.classes import dataclass
from state.errors import EngineFailed
from tasks.engines import adapters
from tasks.plan.health import EngineStatus, read_choices, read_models
from tasks.plan.request_stats import EngineRequest
from tasks.supervision import own_requests

HOST = "127.0.0.1"
HI = ({"role": "user", "content": "Hi"},)
LARGEST_ANSWER = 4 * 2**20


class NotListening(EngineFailed):
    """Nothing listens on the port."""


class Silent(EngineFailed):
    """The port takes connections and says nothing."""


@dataclass(frozen=True)
class ProbeResponse:
    """An HTTP answer; `body` is the JSON in it, or None."""

    status: int
    body: Any


def listening(port: int, timeout_s: float = 1.0) -> bool:
    """Return whether anything accepts connections on the port."""
    try:
        with socket.create_connection((HOST, port), timeout_s):
            return True
    except OSError:
        return False


def models(port: int, key: str, timeout_s: float = 2.0) -> set[str]:
    """Return the names of the models served. Raises NotListening, Silent, EngineFailed."""
    return read_models(_good(ask(port, "/v1/models", key, timeout_s)).body)


def one_answer(port: int, key: str, engine: str, timeout_s: float, *, release: str = "") -> float:
    """Have an engine do once what it is for; return the seconds it took. Raises NotListening, Silent, EngineFailed."""
    shortest = adapters.named(release).shortest_request
    if shortest is None:
        return one_token(port, key, engine, timeout_s)
    began = time.monotonic()
    path, wanted = shortest(engine)
    _good(ask(port, path, key, timeout_s, wanted))
    return time.monotonic() - began


def one_token(port: int, key: str, model: str, timeout_s: float, messages: Sequence[Mapping[str, str]] = HI) -> float:
    """Have one token made, as a caller would; return the seconds it took. Raises NotListening, Silent, EngineFailed.

    Default sampling on purpose: greedy answers do not warm up the kernels that real ones use.
    """
    began = time.monotonic()
    wanted = {"model": model, "max_tokens": 1, "messages": messages}
    with own_requests.sending(port, 1) as answers:
        answer = _good(ask(port, "/v1/chat/completions", key, timeout_s, wanted))
        answers.append(answer.body)
    if not read_choices(answer.body):
        raise EngineFailed("The engine answered a request without a token.")
    return time.monotonic() - began


def status(port: int, key: str, timeout_s: float = 2.0, *, release: str = "") -> EngineStatus:
    """Return what the engine `release` says of itself. Raises NotListening, Silent, EngineFailed."""
    engine = adapters.named(release)
    return engine.read_status(_good(ask(port, engine.status, key, timeout_s)).body)


def detailed_status(
    port: int, key: str, timeout_s: float = 2.0, *, release: str = ""
) -> tuple[EngineStatus, list[EngineRequest]]:
    """Return what the engine `release` says of itself and of its requests. Raises as `status` does."""
    engine = adapters.named(release)
    body = _good(ask(port, engine.status, key, timeout_s)).body
    return engine.read_status(body), engine.read_requests(body)


def purge(port: int, key: str, timeout_s: float = 10.0, *, release: str = "") -> None:
    """Have the engine `release` drop its cache of old prompts. Raises NotListening, Silent, EngineFailed."""
    method, path = adapters.named(release).purge
    _good(ask(port, path, key, timeout_s, method=method))


def answers(port: int, path: str, timeout_s: float = 2.0) -> bool:
    """Return whether a path is answered well. Raises Silent when a process listens and says nothing."""
    try:
        return ask(port, path, "", timeout_s).status == 200  # noqa: PLR2004 (HTTP's OK)
    except NotListening:
        return False


def gateway_ready(port: int, timeout_s: float = 2.0) -> bool:
    """Return whether the gateway takes requests. Raises Silent when it is there and does not answer."""
    try:
        return ask(port, "/health/liveliness", "", timeout_s).status == 200  # noqa: PLR2004 - HTTP
    except NotListening:
        return False


def _good(answer: ProbeResponse) -> ProbeResponse:
    """Let a 200 pass. Raises EngineFailed for all else."""
    if answer.status != 200:  # noqa: PLR2004 - HTTP
        raise EngineFailed(f"The engine answered a request with HTTP {answer.status}.")
    return answer


def ask(
    port: int, path: str, key: str, timeout_s: float, wanted: Any = None, *, method: str | None = None
) -> ProbeResponse:
    """Send one request and read its answer, all within `timeout_s` seconds. Raises NotListening, Silent.

    HTTP/1.0, so that the server closes the connection and sends no chunks.
    """
    try:
        return _read(_exchange(port, _request(method, path, key, wanted), time.monotonic() + timeout_s))
    except ConnectionRefusedError as problem:
        raise NotListening(f"Nothing listens on port {port}.") from problem
    except (OSError, ValueError) as problem:
        raise Silent(f"Port {port} gave no whole answer within {timeout_s:g} s.") from problem


def _request(method: str | None, path: str, key: str, wanted: Any) -> bytes:
    """Spell a request."""
    body = b"" if wanted is None else json.dumps(wanted).encode()
    lines = [
        f"{method or ('POST' if body else 'GET')} {path} HTTP/1.0",
        f"Host: {HOST}",
        *([f"Authorization: Bearer {key}"] if key else []),
        *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _exchange(port: int, request: bytes, deadline: float) -> bytes:
    """Send, and read until the other side closes; every wait gets only the time that is left."""
    with socket.create_connection((HOST, port), _left(deadline)) as connection:
        connection.sendall(request)
        parts: list[bytes] = []
        while sum(map(len, parts)) <= LARGEST_ANSWER:
            connection.settimeout(_left(deadline))
            part = connection.recv(65_536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    raise ValueError("the answer has no end")


def _left(deadline: float) -> float:
    """Return the seconds left. With 0 what is there is read, and nothing is waited for.

    An answer may have been there in time while this process was short of the processor.
    """
    return max(0.0, deadline - time.monotonic())


def _read(raw: bytes) -> ProbeResponse:
    """Take an answer apart. Raises ValueError when it is none."""
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"HTTP/1."):
        raise ValueError("no whole HTTP answer")
    code = int(head.split(None, 2)[1])
    try:
        return ProbeResponse(code, json.loads(body))
    except ValueError:
        return ProbeResponse(code, None)
