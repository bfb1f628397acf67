"""How a command speaks to the gateway: its key, and one streamed answer."""

from __future__ import annotations

import json
from collections.abc import Generator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, cast

from state import secrets
from state.errors import GatewayFailed, NotRunning, NotSetUp
from state.paths import Home

ANSWER_S = 600.0
"""How long the gateway may say nothing: a long prompt is read first."""


def key(home: Home) -> str:
    """Give the key that opens the gateway. Raises NotSetUp when none was made yet."""
    found = secrets.read(home.secrets).get(secrets.MASTER)
    if found is None:
        raise NotSetUp("There is no key for the gateway yet.", hint="mlxq setup")
    return found


def stream(url: str, opener: str, body: dict[str, Any]) -> Generator[str]:
    """Ask for one completion and give its text as it comes.

    `url` is the endpoint, `opener` the key.
    Raises NotRunning when nobody listens, GatewayFailed with what the gateway said.
    """
    host, _, path = url.removeprefix("http://").partition("/")
    connection = HTTPConnection(host, timeout=ANSWER_S)
    headers = {"Authorization": f"Bearer {opener}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"/{path}/chat/completions", json.dumps(body | {"stream": True}), headers)
        answer = connection.getresponse()
        if answer.status != 200:  # noqa: PLR2004 (HTTP's OK)
            raise _refused(answer.status, answer.read())
        yield from _pieces(answer)
    except ConnectionRefusedError as problem:
        raise NotRunning(f"Nothing answers at {url}.", hint="mlxq up") from problem
    except (OSError, HTTPException) as problem:
        raise GatewayFailed(f"The gateway at {url} broke off: {problem}.", hint="mlxq status") from problem
    finally:
        connection.close()


def _pieces(answer: HTTPResponse) -> Generator[str]:
    """Read server-sent events up to [DONE]; give the text of each."""
    for raw in answer:
        text = raw.decode("utf-8", "replace").strip()
        if text == "data: [DONE]":
            return
        if text.startswith("data:"):
            event = json.loads(text.removeprefix("data:"))
            if "error" in event:
                raise _failed(event["error"])
            yield from (choice["delta"].get("content") or "" for choice in event.get("choices", []))


def _refused(status: int, body: bytes) -> GatewayFailed:
    try:
        return _failed(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return GatewayFailed(f"The gateway answered HTTP {status}.", hint="mlxq status")


def _failed(error: Any) -> GatewayFailed:
    said = cast("dict[str, Any]", error).get("message", "") if isinstance(error, dict) else error
    return GatewayFailed(f"The gateway refused: {said}", hint="mlxq status")
