"""A stand-in for an engine, for faults that vllm-mlx cannot be made to produce on demand.

`python upstream.py PORT NAME`. The last user message orders the fault: `say TEXT`, `status 503`, `hang`, `die`
(before the answer), `beat TEXT` (heartbeats between the words), `die-after N` (chunks), `silent-end N` (clean end of
the stream without a finish reason), `error-event N`, `held` (a word each tenth of a second until POST /release). POST
/fault sets one for all requests. GET /seen gives the bodies received.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

CUT = ("die-after", "hang-after", "silent-end", "error-event")
TEXT = "one two three four five six seven eight nine ten"
name = "upstream"
seen: list[dict[str, Any]] = []
standing: list[str] = []
releases: list[None] = []


def words(text: str) -> list[str]:
    """Split so that joining gives the text back; each piece is a token."""
    pieces = text.split(" ")
    return [pieces[0], *(f" {piece}" for piece in pieces[1:])]


def order(body: dict[str, Any]) -> list[str]:
    if standing:
        return standing[0].split(" ", 1)
    content = next((m["content"] for m in reversed(body.get("messages", [])) if m["role"] == "user"), "")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return str(content).split(" ", 1)


def envelope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": name, **fields}


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


async def chunks(text: str, verb: str, limit: int, pause: float) -> AsyncIterator[str]:
    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps(envelope('chat.completion.chunk', choices=[choice], **more))}\n\n"

    yield event({"role": "assistant"})
    pieces = words(text)
    for count, piece in enumerate(pieces):
        if verb in CUT and count == limit:
            if verb == "die-after":
                os._exit(1)
            if verb == "hang-after":
                await asyncio.sleep(600)
            if verb == "error-event":
                yield 'data: {"error": {"message": "boom", "code": 500}}\n\ndata: [DONE]\n\n'
            return
        await asyncio.sleep(pause)
        if verb.startswith("beat"):
            yield ": heartbeat\n\n"
        yield event({"content": piece})
    yield event({}, "length" if verb == "cut" else "stop", usage=usage(len(pieces)))
    yield "data: [DONE]\n\n"


def _tool(body: dict[str, Any]) -> Response:
    """Call the first tool that the request offers, in pieces when it streams, as vllm-mlx does."""
    function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city": "Oslo"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return JSONResponse(envelope("chat.completion", choices=[choice], usage=usage(5)))
    pieces = [
        {"role": "assistant", "tool_calls": [{"index": 0, **call, "function": {**function, "arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    ]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in pieces]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    events = [f"data: {json.dumps(envelope('chat.completion.chunk', choices=[one]))}\n\n" for one in choices]
    return Response("".join(events) + "data: [DONE]\n\n", media_type="text/event-stream")


async def chat(request: Request) -> Response:
    body = await request.json()
    seen.append(body)
    if (body.get("response_format") or {}).get("type") == "json_schema":
        return JSONResponse({"detail": "[metal_kernel] No Metal back-end"}, status_code=500)
    verb, rest = (*order(body), "")[:2]
    if verb == "status":
        return JSONResponse({"detail": f"upstream says {rest}"}, status_code=int(rest.split()[0]))
    if verb == "tool":
        return _tool(body)
    if verb == "hang":
        await asyncio.sleep(600)
    if verb == "die":
        os._exit(1)
    text = rest if verb in ("say", "beat", "cut") else TEXT
    if verb == "held":
        return StreamingResponse(held(), media_type="text/event-stream")
    limit = int(rest) if verb in CUT else 0
    pause = float(rest) if verb in ("slow", "beat-slow") else 0.0
    if body.get("stream"):
        return StreamingResponse(chunks(text, verb, limit, pause), media_type="text/event-stream")
    await asyncio.sleep(pause * len(words(text)))
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse(envelope("chat.completion", choices=[choice], usage=usage(len(words(text)))))


async def status(_: Request) -> Response:
    """Tell of requests at work as the engine does; here always of one, seven tokens long."""
    return JSONResponse({"requests": [{"prompt_tokens": 7, "completion_tokens": 3}]})


async def held() -> AsyncIterator[str]:
    """Stream words until the next POST /release."""
    before = len(releases)
    while len(releases) == before:
        choice = {"index": 0, "delta": {"content": "and "}, "finish_reason": None}
        yield f"data: {json.dumps(envelope('chat.completion.chunk', choices=[choice]))}\n\n"
        await asyncio.sleep(0.1)
    async for event in chunks("over", "say", 0, 0.0):
        yield event


async def completions(request: Request) -> Response:
    body = await request.json()
    seen.append(body)

    async def events() -> AsyncIterator[str]:
        for piece in words(TEXT):
            choice = {"index": 0, "text": piece, "finish_reason": None}
            yield f"data: {json.dumps(envelope('text_completion', choices=[choice]))}\n\n"
        choice = {"index": 0, "text": "", "finish_reason": "stop"}
        yield f"data: {json.dumps(envelope('text_completion', choices=[choice], usage=usage(10)))}\n\n"
        yield "data: [DONE]\n\n"

    if body.get("stream"):
        return StreamingResponse(events(), media_type="text/event-stream")
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop"}
    return JSONResponse(envelope("text_completion", choices=[choice], usage=usage(10)))


async def count_tokens(request: Request) -> Response:
    """Count words, which are tokens here."""
    body = await request.json()
    return JSONResponse({"input_tokens": len(str(body["messages"][0]["content"]).split())})


async def fault(request: Request) -> Response:
    standing[:] = [text] if (text := (await request.body()).decode()) else []
    return JSONResponse({})


async def release(_: Request) -> Response:
    releases.append(None)
    return JSONResponse({})


async def requests(_: Request) -> Response:
    return JSONResponse(seen)


async def models(_: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"}]})


class Open:
    """Counts the requests at work, as long as their clients are there."""

    number = 0

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        given = [{"type": "http.request", "body": body}]

        async def again() -> Any:
            return given.pop() if given else await asyncio.Event().wait()

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        Open.number += 1
        work, leaving = asyncio.create_task(self.app(scope, again, send)), asyncio.create_task(left())
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        for task in (work, leaving):
            task.cancel()
        Open.number -= 1
        if work.done() and not work.cancelled():
            work.result()


async def opened(_: Request) -> Response:
    return JSONResponse(Open.number)


app = Starlette(
    middleware=[Middleware(Open)],
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/api/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/status", status),
        Route("/fault", fault, methods=["POST"]),
        Route("/release", release, methods=["POST"]),
        Route("/seen", requests),
        Route("/open", opened),
    ],
)

if __name__ == "__main__":
    name = sys.argv[2]
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
