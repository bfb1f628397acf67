"""An engine's program that notes what it is asked: `python -P counted_engine.py LOG PROGRAM ARGUMENT…`.

The last user message of each chat becomes a line of LOG, as soon as the request is whole, so that a kill loses none.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
App = Callable[[dict[str, Any], Receive, Any], Awaitable[None]]
CHAT = "/v1/chat/completions"


def counted(app: App, log: int) -> App:
    """Return the application with a note of each chat."""

    async def serve(scope: dict[str, Any], receive: Receive, send: Any) -> None:
        content = bytearray()

        async def noted() -> dict[str, Any]:
            message = await receive()
            content.extend(message.get("body", b""))
            if message["type"] == "http.request" and not message.get("more_body"):
                os.write(log, json.loads(content)["messages"][-1]["content"].encode() + b"\n")
            return message

        await app(scope, noted if scope.get("path") == CHAT else receive, send)

    return serve


def main() -> None:
    """Run the program."""
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    make = uvicorn.Config.__init__

    def configured(self: uvicorn.Config, app: Any, *args: Any, **named: Any) -> None:
        make(self, counted(app, log), *args, **named)

    uvicorn.Config.__init__ = configured
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
