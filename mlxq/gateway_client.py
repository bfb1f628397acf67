"""A minimal client of the gateway: its key, and one streamed chat completion."""

from __future__ import annotations

import json
from collections.abc import Generator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, cast

from state import secrets
from state.errors import GatewayFailed, NotRunning, NotSetUp
from state.paths import Home

ANSWER_S = 600.0
"""Read timeout in seconds; processing a long prompt takes minutes."""


def key(home: Home) -> str:
    """Return the gateway's master key. Raises NotSetUp if there is none yet."""
    master = secrets.read(home.secrets).get(secrets.MASTER)
    if master is None:
        raise NotSetUp("There is no key for the gateway yet.", hint="mlxq setup")
    return master


def stream(url: str, opener: str, body: dict[str, Any]) -> Generator[str]:
    """Request one chat completion and yield its text as it arrives.

    `url` is the endpoint, `opener` the key.
    Raises NotRunning if the gateway is down, GatewayFailed with the gateway's message.
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
    """Yield the text of each server-sent event up to [DONE]."""
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
    message = cast("dict[str, Any]", error).get("message", "") if isinstance(error, dict) else error
    return GatewayFailed(f"The gateway refused: {message}", hint="mlxq status")
