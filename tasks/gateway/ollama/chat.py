"""Ollama's chat and generate through an engine's chat, and its answers as lines of JSON. Pure but for the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from tasks.gateway.dialects import turns
from tasks.gateway.dialects.blocks import BlockEncoder, Piece, pieces
from tasks.gateway.dialects.json_values import first, obj
from tasks.gateway.dialects.schemas import Fields
from tasks.gateway.ollama.fields import OllamaGenerate, OllamaTexts
from tasks.gateway.request_context import Call

_SAME = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "stop")
_TYPES = {"iVBOR": "png", "/9j/": "jpeg", "UklGR": "webp", "R0lG": "gif"}
"""How base64 of each kind of picture begins."""
_NS = 1_000_000_000


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat that asks for the same. `body`: the fields of OllamaChat or OllamaGenerate, checked."""
    chat: dict[str, Any] = {"model": body["model"], "stream": body.get("stream", True)}
    chat["messages"] = turns.arranged(_messages(body))
    if tools := body.get("tools"):
        chat["tools"] = tools
    return chat | _options(body.get("options") or {}) | _format(body.get("format")) | _think(body.get("think"))


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    chat = {name: options[name] for name in _SAME if name in options}
    if "repeat_penalty" in options:
        chat["repetition_penalty"] = options["repeat_penalty"]
    if options.get("num_predict", 0) > 0:
        chat["max_tokens"] = options["num_predict"]
    return chat


def _format(form: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if not form:
        return {}
    if isinstance(form, str):
        return {"response_format": {"type": "json_object"}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}}


def _think(wish: bool | str | None) -> dict[str, Any]:
    if wish is None:
        return {}
    return {"enable_thinking": wish} if isinstance(wish, bool) else {"reasoning_effort": wish}


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "messages" in body:
        waiting: deque[tuple[str, str]] = deque()
        return [_message(message, at, waiting) for at, message in enumerate(body["messages"])]
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return [*system, {"role": "user", "content": _content(body.get("prompt"), body.get("images"))}]


def _message(message: Mapping[str, Any], number: int, waiting: deque[tuple[str, str]]) -> dict[str, Any]:
    """Return one message. `number`: where it is; `waiting`: (id, name) of the calls without a result yet.

    Ollama names a result by its tool alone.
    """
    if message["role"] == "tool":
        return {"role": "tool", "tool_call_id": _answered(message, waiting), "content": message.get("content") or ""}
    turn: dict[str, Any] = {"role": message["role"], "content": _content(message.get("content"), message.get("images"))}
    if message.get("thinking"):
        turn["reasoning_content"] = message["thinking"]
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [_call(call, f"call_{number}_{at}") for at, call in enumerate(calls)]
        waiting += [(call["id"], call["function"]["name"]) for call in turn["tool_calls"]]
    return turn


def _call(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a call. `name`: its id where it has none."""
    function = call["function"]
    arguments = orjson.dumps(function.get("arguments") or {}).decode()
    written = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id") or name, "type": "function", "function": written}


def _answered(message: Mapping[str, Any], waiting: deque[tuple[str, str]]) -> str:
    """Return the id of the call that a tool's result belongs to: its own, else the first one of this tool."""
    named = [call for call in waiting if message.get("tool_name") in {None, call[1]}]
    call = (message["tool_call_id"], "") if message.get("tool_call_id") else next(iter(named), ("call_0", ""))
    if call in waiting:
        waiting.remove(call)
    return call[0]


def _content(text: str | None, images: Sequence[str] | None) -> str | list[dict[str, Any]]:
    if not images:
        return text or ""
    return [{"type": "text", "text": text or ""}, *map(_image, images)]


def _image(picture: str) -> dict[str, Any]:
    kind = next((kind for start, kind in _TYPES.items() if picture.startswith(start)), "png")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{''.join(picture.split())}"}}


# Back


class OllamaTranslation:
    """A chat's answers in the words of /api/chat, or of /api/generate where `generates`."""

    def __init__(self, model: str, began: float, loaded_s: float = 0.0, *, generates: bool) -> None:
        """`model`: the name that the caller knows; `began`: when the request came, in monotonic seconds.

        `loaded_s`: how long it waited for its model.
        """
        self._model = model
        self._began = began
        self._loaded_s = loaded_s
        self._generates = generates

    def whole(self, answer: Mapping[str, Any], id: str, stop: str | None, spoke: float | None) -> dict[str, Any]:  # noqa: A002, ARG002 - Ollama has no ids
        """Return a whole answer."""
        choice = first(answer.get("choices"))
        parts = list(pieces(obj(choice.get("message"))))
        texts = {kind: "".join(part.text for part in parts if part.kind == kind) for kind in ("words", "thoughts")}
        calls = [called(part, part.text, at) for at, part in enumerate(part for part in parts if part.kind == "call")]
        shown = self.part(texts["words"], texts["thoughts"], calls)
        return shown | self.ending(choice.get("finish_reason"), obj(answer.get("usage")), spoke)

    def encoder(self, id: str, model: str) -> OllamaEncoder:  # noqa: A002, ARG002 - Ollama has no ids
        """Return what writes a stream."""
        return OllamaEncoder(self)

    def part(self, words: str, thoughts: str = "", calls: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Return what one line says of the answer."""
        head = {"model": self._model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        thinking = {"thinking": thoughts} if thoughts else {}
        if self._generates:
            return {**head, "response": words, **thinking, "done": False}
        message = {"role": "assistant", "content": words, **thinking}
        return {**head, "message": message | ({"tool_calls": list(calls)} if calls else {}), "done": False}

    def ending(self, finish: str | None, usage: Mapping[str, Any], spoke: float | None) -> dict[str, Any]:
        """Return the fields of the last line. `spoke`: when the first words came, in monotonic seconds."""
        now = time.monotonic()
        first_at = now if spoke is None else spoke
        return {
            "done": True,
            "done_reason": "length" if finish == "length" else "stop",
            "total_duration": int((now - self._began) * _NS),
            "load_duration": int(self._loaded_s * _NS),
            "prompt_eval_count": int(usage.get("prompt_tokens") or 0),
            "prompt_eval_duration": int((first_at - self._began - self._loaded_s) * _NS),
            "eval_count": int(usage.get("completion_tokens") or 0),
            "eval_duration": int((now - first_at) * _NS),
        }


def is_loading(request: Fields) -> bool:
    """Return whether a request has no words: by that Ollama's clients have a model loaded, kept or stopped."""
    wordless = not getattr(request, "messages", None) and not getattr(request, "prompt", None)
    return isinstance(request, OllamaTexts) and wordless


def loading(request: OllamaTexts, call: Call, *, stops: bool) -> dict[str, Any]:
    """Return the answer to a request without words. `stops`: whether its model is stopped, else it is loaded."""
    translation = OllamaTranslation(request.model, call.began, generates=isinstance(request, OllamaGenerate))
    spans = {"total_duration": int((time.monotonic() - call.began) * _NS), "load_duration": int(call.loaded_s * _NS)}
    return translation.part("") | {"done": True, "done_reason": "unload" if stops else "load"} | spans


def called(piece: Piece, text: str, index: int) -> dict[str, Any]:
    """Return a tool call. `text`: its arguments as JSON."""
    try:
        arguments = obj(orjson.loads(text or "{}"))
    except orjson.JSONDecodeError:
        arguments = {}
    return {
        **({"id": piece.id} if piece.id else {}),
        "function": {"index": index, "name": piece.name, "arguments": arguments},
    }


class OllamaEncoder(BlockEncoder):
    """Writes the chunks of a chat as lines of JSON; a tool call comes whole."""

    def __init__(self, translation: OllamaTranslation) -> None:
        super().__init__()
        self._translation = translation
        self._spoke: float | None = None

    def start(self) -> bytes:
        """Return nothing: a stream begins with its first words."""
        return b""

    def _opened(self, piece: Piece) -> bytes:  # noqa: ARG002 - nothing marks a beginning
        self._spoke = self._spoke or time.monotonic()
        return b""

    def _added(self, piece: Piece) -> bytes:
        match piece.kind:
            case "words":
                return line(self._translation.part(piece.text))
            case "thoughts":
                return line(self._translation.part("", piece.text))
            case _:
                return b""

    def _closed(self, piece: Piece, text: str) -> bytes:
        return line(self._translation.part("", "", [called(piece, text, piece.at)])) if piece.kind == "call" else b""

    def end(self, stop: str | None) -> bytes:  # noqa: ARG002 - Ollama does not name the stop string
        """Return the last lines."""
        last = self._translation.part("") | self._translation.ending(self.finish, obj(self.usage), self._spoke)
        return self.rest() + line(last)


def line(fields: Mapping[str, Any]) -> bytes:
    """Return one line of a stream."""
    return orjson.dumps(dict(fields), option=orjson.OPT_APPEND_NEWLINE)
