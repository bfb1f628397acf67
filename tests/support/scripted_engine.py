"""An engine that does what a request's script says, in every dialect that the gateway relays.

`python scripted_engine.py PORT NAME [SLOTS]`. The last user message that holds `script {JSON}` orders the answer
(`Script` lists the fields); POST /script sets one for all requests, an empty body takes it back. It works at SLOTS
requests side by side, without a number at all. GET /seen tells what came in (path, headers, body), DELETE /seen forgets
it. GET /active counts the requests by what the engine does for them now: it drops one as soon as its client is gone, as
vllm-mlx and rapid-mlx do.

Shapes follow OpenAI's and Anthropic's references, and vllm-mlx 0.6.0 where those leave a choice (heartbeats are SSE
comments). A program of its own, so that a test can kill it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from aiohttp import web

WORDS = "one two three four five six seven eight nine ten"
MARK = "script {"
PROMPT_TOKENS = 7


@dataclass(frozen=True)
class Script:
    """What the engine does with one request."""

    text: str = WORDS
    tokens: int = 0
    """So many short words instead of `text`."""
    thinking: str = ""
    tool: str = ""
    """Calls this tool first, if the request offers it, and says `text` once the tool's result came back."""
    arguments: dict[str, Any] = field(default_factory=dict)
    finish: str = "stop"
    """`stop` or `length`, in OpenAI's words."""
    status: int = 200
    error: Any = None
    """The body of an answer whose status is not 200; None makes one in FastAPI's shape."""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    """Seconds before the head of the answer: the request waits for a slot."""
    prefill_s: float = 0.0
    """Seconds from the head to the first token; a stream says a heartbeat every `beat_s`."""
    beat_s: float = 5.0
    pause_s: float = 0.0
    """Seconds a token."""
    fault: str = ""
    """What happens after `after` tokens: die, reset, hang, silent-end, error-event, garbage; or garbage-within: one
    event that is no JSON, in several writes, and then the rest of a good answer."""
    after: int = 0
    events: list[str] = field(default_factory=list)
    """Server-sent events sent as they stand, instead of all others."""


@dataclass
class State:
    """What this process has seen and is doing."""

    name: str = "scripted"
    standing: Script | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(10_000))
    """Of requests in `wait_s`, which stands for their work."""
    active: dict[str, int] = field(default_factory=lambda: {"waiting": 0, "prefill": 0, "generating": 0})


state = State()


class Work:
    """One request at work, counted under the phase that it is in."""

    def __init__(self) -> None:
        self.phase = "waiting"
        state.active[self.phase] += 1

    def enter(self, phase: str) -> None:
        state.active[self.phase] -= 1
        state.active[phase] += 1
        self.phase = phase

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        state.active[self.phase] -= 1


def pieces(text: str) -> list[str]:
    """Return the tokens of a text: joined they are the text again."""
    return re.findall(r"^\S*|\s+\S*", text) if text else []


def flat(content: Any) -> str:
    """Return the text of a message's content in any dialect."""
    if isinstance(content, list):
        return "\n".join(flat(part.get("text", part.get("content", ""))) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def turns(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (role, text) of each message; a tool's result has the role `tool`."""
    given = body.get("messages", body.get("input", body.get("prompt", "")))
    for message in given if isinstance(given, list) else [{"role": "user", "content": given}]:
        if not isinstance(message, dict):
            continue
        content = message.get("content", message.get("output", ""))
        parts = content if isinstance(content, list) else []
        result = any(isinstance(part, dict) and part.get("type") == "tool_result" for part in parts)
        answered = result or message.get("type") in {"function_call_output", "custom_tool_call_output"}
        yield "tool" if answered else message.get("role", "user"), flat(content)


def ordered(text: str) -> Script | None:
    """Return the script that a text holds."""
    at = text.rfind(MARK)
    if at < 0:
        return None
    with contextlib.suppress(json.JSONDecodeError):
        given, _ = json.JSONDecoder().raw_decode(text[at + len(MARK) - 1 :])
        return read(given)
    return None


def read(given: dict[str, Any]) -> Script:
    known = {one.name for one in fields(Script)}
    script = Script(**{name: value for name, value in given.items() if name in known})
    return replace(script, text="word" + " word" * (script.tokens - 1)) if script.tokens else script


def offered(body: dict[str, Any]) -> set[str]:
    tools = [tool for tool in body.get("tools") or [] if isinstance(tool, dict)]
    return {str(tool.get("name") or (tool.get("function") or {}).get("name")) for tool in tools}


def plan(body: dict[str, Any]) -> Script:
    """Return the script for a request: the standing one, the last ordered one, or ten words."""
    conversation = list(turns(body))
    script, at = state.standing or Script(), -1
    for number, (role, text) in enumerate(conversation):
        if role == "user" and state.standing is None and (found := ordered(text)):
            script, at = found, number
    told = any(role == "tool" for role, _ in conversation[at + 1 :])
    if script.tool and (told or script.tool not in offered(body)):
        return replace(script, tool="")
    return script


class Dialect:
    """How one API says an answer. `stream` yields (is a token, bytes)."""

    def __init__(self, body: dict[str, Any], script: Script) -> None:
        self.body, self.script = body, script
        self.spoken = pieces(script.thinking) + ([] if script.tool else pieces(script.text))
        self.call = {"name": script.tool, "arguments": json.dumps(script.arguments)}

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def stream(self) -> Iterator[tuple[bool, bytes]]:
        raise NotImplementedError

    def broken(self) -> bytes:
        return data({"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}})


def data(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def event(payload: dict[str, Any]) -> bytes:
    return f"event: {payload['type']}\n".encode() + data(payload)


class Chat(Dialect):
    """POST /v1/chat/completions."""

    def _usage(self) -> dict[str, int]:
        tokens = len(self.spoken) or 1
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": tokens,
            "total_tokens": PROMPT_TOKENS + tokens,
        }

    def _envelope(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": state.name, **more}

    def _finish(self) -> str:
        return "tool_calls" if self.script.tool else self.script.finish

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None if self.script.tool else self.script.text}
        if self.script.thinking:
            message["reasoning_content"] = self.script.thinking
        if self.script.tool:
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": self.call}]
        choice = {"index": 0, "message": message, "finish_reason": self._finish()}
        return self._envelope("chat.completion", choices=[choice], usage=self._usage())

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return data(self._envelope("chat.completion.chunk", choices=[choice]))

    def stream(self) -> Iterator[tuple[bool, bytes]]:
        yield False, self._chunk({"role": "assistant"})
        for piece in pieces(self.script.thinking):
            yield True, self._chunk({"reasoning_content": piece})
        if self.script.tool:
            head = {"index": 0, "id": "call_1", "type": "function", "function": {**self.call, "arguments": ""}}
            yield True, self._chunk({"tool_calls": [head]})
            rest = {"index": 0, "function": {"arguments": self.call["arguments"]}}
            yield True, self._chunk({"tool_calls": [rest]})
        else:
            for piece in pieces(self.script.text):
                yield True, self._chunk({"content": piece})
        yield False, self._chunk({}, self._finish())
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield False, data(self._envelope("chat.completion.chunk", choices=[], usage=self._usage()))
        yield False, b"data: [DONE]\n\n"


class Completion(Chat):
    """POST /v1/completions."""

    def whole(self) -> dict[str, Any]:
        choice = {"index": 0, "text": self.script.text, "finish_reason": self.script.finish, "logprobs": None}
        return self._envelope("text_completion", choices=[choice], usage=self._usage())

    def stream(self) -> Iterator[tuple[bool, bytes]]:
        for piece in pieces(self.script.text):
            choice = {"index": 0, "text": piece, "finish_reason": None, "logprobs": None}
            yield True, data(self._envelope("text_completion", choices=[choice]))
        last = {"index": 0, "text": "", "finish_reason": self.script.finish, "logprobs": None}
        yield False, data(self._envelope("text_completion", choices=[last], usage=self._usage()))
        yield False, b"data: [DONE]\n\n"


class Messages(Dialect):
    """POST /v1/messages."""

    def _reason(self) -> str:
        return "tool_use" if self.script.tool else {"length": "max_tokens"}.get(self.script.finish, "end_turn")

    def _usage(self) -> dict[str, int]:
        return {"input_tokens": PROMPT_TOKENS, "output_tokens": len(self.spoken) or 1}

    def _message(self, **more: Any) -> dict[str, Any]:
        about = {"id": "msg_1", "type": "message", "role": "assistant", "model": state.name, "content": []}
        return {**about, "stop_reason": None, "stop_sequence": None, "usage": self._usage(), **more}

    def whole(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if self.script.thinking:
            content.append({"type": "thinking", "thinking": self.script.thinking, "signature": ""})
        if self.script.tool:
            use = {"type": "tool_use", "id": "toolu_1", "name": self.script.tool, "input": self.script.arguments}
            content.append(use)
        else:
            content.append({"type": "text", "text": self.script.text})
        return self._message(content=content, stop_reason=self._reason())

    def _block(self, index: int, opening: dict[str, Any], deltas: list[dict[str, Any]]) -> Iterator[tuple[bool, bytes]]:
        yield False, event({"type": "content_block_start", "index": index, "content_block": opening})
        for delta in deltas:
            yield True, event({"type": "content_block_delta", "index": index, "delta": delta})
        yield False, event({"type": "content_block_stop", "index": index})

    def stream(self) -> Iterator[tuple[bool, bytes]]:
        script, index = self.script, 0
        yield False, event({"type": "message_start", "message": self._message(usage={**self._usage()})})
        if script.thinking:
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(script.thinking)]
            yield from self._block(0, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
            index = 1
        if script.tool:
            deltas = [{"type": "input_json_delta", "partial_json": self.call["arguments"]}]
            yield from self._block(
                index, {"type": "tool_use", "id": "toolu_1", "name": script.tool, "input": {}}, deltas
            )
        else:
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(script.text)]
            yield from self._block(index, {"type": "text", "text": ""}, deltas)
        ending = {"stop_reason": self._reason(), "stop_sequence": None}
        yield False, event({"type": "message_delta", "delta": ending, "usage": self._usage()})
        yield False, event({"type": "message_stop"})

    def broken(self) -> bytes:
        return event({"type": "error", "error": {"type": "api_error", "message": "Internal server error"}})


async def beats(seconds: float, every_s: float) -> AsyncIterator[bytes]:
    """Yield a heartbeat every `every_s` for so many seconds."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, every_s))
        yield b": heartbeat\n\n"


async def fail(script: Script, dialect: Dialect, answer: web.StreamResponse, request: web.Request) -> None:
    """Do what the script's fault says; the stream ends here."""
    if script.fault == "die":
        os._exit(1)
    if script.fault == "hang":
        await asyncio.sleep(600)
    if script.fault == "error-event":
        await answer.write(dialect.broken() + b"data: [DONE]\n\n")
    if script.fault == "garbage":
        await answer.write(b"data: {\x00not json\n\n\xff\xfe")
    if script.fault == "reset" and request.transport:
        request.transport.abort()
    elif script.fault != "silent-end" and request.transport:
        request.transport.close()  # without the last chunk: the body ends in its middle


async def streamed(request: web.Request, script: Script, dialect: Dialect, work: Work) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"content-type": "text/event-stream", **script.headers})
    await answer.prepare(request)
    work.enter("prefill")
    async for beat in beats(script.prefill_s, script.beat_s):
        await answer.write(beat)
    frames = ((True, one.encode()) for one in script.events) if script.events else dialect.stream()
    told, due = 0, time.monotonic()
    for token, frame in frames:
        if token:
            if script.fault == "garbage-within" and told == script.after:
                for part in (b'data: {"a": ', b"\x00no JSON", b"}\n", b"\n"):
                    await answer.write(part)
                    await asyncio.sleep(0.02)
            elif script.fault and told == script.after:
                await fail(script, dialect, answer, request)
                return answer
            due, told = due + script.pause_s, told + 1
            if script.pause_s:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            if told == 1:
                work.enter("generating")
        await answer.write(frame)
    await answer.write_eof()
    return answer


async def at_once(request: web.Request, script: Script, dialect: Dialect, work: Work) -> web.StreamResponse:
    work.enter("prefill")
    await asyncio.sleep(script.prefill_s)
    work.enter("generating")
    if script.fault == "die":
        os._exit(1)
    if script.fault == "reset" and request.transport:
        request.transport.abort()
    if script.fault == "hang":
        await asyncio.sleep(600)
    await asyncio.sleep(script.pause_s * len(dialect.spoken))
    if script.fault == "garbage":
        return web.Response(body=b"{\x00not json", content_type="application/json")
    return web.json_response(dialect.whole(), headers=script.headers)


def serve(kind: type[Dialect]) -> Callable[[web.Request], Any]:
    """Return the handler of one dialect's path."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await remember(request)
        script = plan(body)
        with Work() as work:
            async with state.slots:
                await asyncio.sleep(script.wait_s)
            if script.status != 200:
                said = script.error or {"detail": f"the engine says {script.status}"}
                return web.json_response(said, status=script.status, headers=script.headers)
            way = streamed if body.get("stream") else at_once
            return await way(request, script, kind(body, script), work)

    return answer


async def remember(request: web.Request) -> dict[str, Any]:
    body = await request.json()
    state.seen.append({"path": request.path, "headers": dict(request.headers), "body": body})
    return body


async def count(request: web.Request) -> web.Response:
    body = await remember(request)
    return web.json_response({"input_tokens": sum(len(text.split()) for _, text in turns(body))})


async def embeddings(request: web.Request) -> web.StreamResponse:
    body = await remember(request)
    script = plan({"prompt": body.get("input")})
    with Work() as work:
        await asyncio.sleep(script.wait_s)
        work.enter("prefill")
        await asyncio.sleep(script.prefill_s)
    given = body.get("input") if isinstance(body.get("input"), list) else [body.get("input")]
    rows = [{"object": "embedding", "index": at, "embedding": [0.0, 1.0]} for at, _ in enumerate(given or [])]
    usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
    return web.json_response({"object": "list", "data": rows, "model": state.name, "usage": usage})


async def seen(_: web.Request) -> web.Response:
    return web.json_response(state.seen)


async def forget(_: web.Request) -> web.Response:
    state.seen.clear()
    return web.json_response({})


async def order(request: web.Request) -> web.Response:
    text = await request.text()
    state.standing = read(json.loads(text)) if text else None
    return web.json_response({})


async def active(_: web.Request) -> web.Response:
    return web.json_response(state.active)


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": state.name, "object": "model", "created": 0}]})


async def health(_: web.Request) -> web.Response:
    return web.json_response({"status": "healthy", "ready": True, "model_loaded": True, "model_name": state.name})


async def status(_: web.Request) -> web.Response:
    busy = [{"phase": phase, "prompt_tokens": PROMPT_TOKENS} for phase, number in state.active.items() if number]
    return web.json_response({"num_running": sum(state.active.values()), "requests": busy})


ROUTES = [
    web.post("/v1/chat/completions", serve(Chat)),
    web.post("/v1/completions", serve(Completion)),
    web.post("/v1/messages", serve(Messages)),
    web.post("/v1/messages/count_tokens", count),
    web.post("/v1/embeddings", embeddings),
    web.get("/v1/models", models),
    web.get("/v1/status", status),
    web.get("/health", health),
    web.get("/seen", seen),
    web.delete("/seen", forget),
    web.post("/script", order),
    web.get("/active", active),
]


async def drain_when_told(_: web.Application) -> None:
    """Take no new connection from SIGUSR2 on, and end with code 0 after the last answer, as an adapter's engine.

    A second signal, by a worker that resumes the job of one that died, has no effect.
    """
    loop = asyncio.get_running_loop()

    def leave() -> None:
        loop.add_signal_handler(signal.SIGUSR2, lambda: None)
        raise web.GracefulExit

    loop.add_signal_handler(signal.SIGUSR2, leave)


def main(port: int, name: str, slots: str = "") -> None:
    """Serve until killed; a handler is cancelled when its client is gone."""
    state.name = name
    if slots:
        state.slots = asyncio.Semaphore(int(slots))
    app = web.Application(client_max_size=2**30)
    app.add_routes(ROUTES)
    app.on_startup.append(drain_when_told)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
