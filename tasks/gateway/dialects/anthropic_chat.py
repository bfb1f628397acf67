"""Anthropic's messages through an engine's chat: for engines whose own messages say less than their chat does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from tasks.gateway.dialects import sse, turns
from tasks.gateway.dialects.blocks import BlockEncoder, Kind, Piece
from tasks.gateway.dialects.json_values import first, obj, objects
from tasks.gateway.dialects.thinking import EFFORT

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_USUAL_EFFORT = "high"
"""The same as no effort at all (Anthropic's reference)."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stream")


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat that asks for the same. `body`: the fields of schemas.Messages, checked."""
    chat: dict[str, Any] = {name: body[name] for name in _SAME if name in body}
    messages = [*_system(body.get("system"))]
    for message in body["messages"]:
        messages += _messages(message)
    chat["messages"] = turns.arranged(messages)
    if stops := body.get("stop_sequences"):
        chat["stop"] = stops
    if tools := body.get("tools"):
        chat["tools"] = [_tool(tool) for tool in tools]
    if choice := body.get("tool_choice"):
        named = {"type": "function", "function": {"name": choice.get("name", "")}}
        chat["tool_choice"] = _CHOICES.get(choice["type"], named)
    chat |= _thinking(body.get("thinking") or {})
    config: Mapping[str, Any] = body.get("output_config") or {}
    if form := config.get("format") or body.get("output_format"):
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}
    if (effort := config.get("effort")) and effort != _USUAL_EFFORT:
        chat[EFFORT] = effort
    return chat


def _thinking(wish: Mapping[str, Any]) -> dict[str, Any]:
    """Return what switches a model's thinking; `adaptive` leaves it to the tier."""
    match wish.get("type"):
        case "enabled":
            budget = {"thinking_token_budget": wish["budget_tokens"]} if "budget_tokens" in wish else {}
            return {"enable_thinking": True, **budget}
        case "disabled":
            return {"enable_thinking": False}
        case _:
            return {}


def _system(system: str | Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    text = system if isinstance(system, str) else "\n\n".join(block["text"] for block in system or ())
    return [{"role": "system", "content": text}] if text else []


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if "description" in tool:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one message of Anthropic's as the one or more that a chat has for it."""
    if isinstance(message["content"], str):
        return [{"role": message["role"], "content": message["content"]}]
    blocks: Sequence[Mapping[str, Any]] = message["content"]
    if message["role"] == "assistant":
        return [_assistant(blocks)]
    results = [_result(block) for block in blocks if block["type"] == "tool_result"]
    parts = [part for block in blocks for part in _parts(block)]
    if not parts:
        return results or [{"role": message["role"], "content": ""}]
    return [*results, {"role": message["role"], "content": _plain(parts)}]


def _assistant(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    thoughts = "\n".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": _plain([part for block in blocks for part in _parts(block)]),
    }
    return turn | ({"tool_calls": calls} if calls else {}) | ({"reasoning_content": thoughts} if thoughts else {})


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    content: Any = block.get("content") or ""
    if not isinstance(content, str):
        content = _plain([part for inner in cast("Sequence[Mapping[str, Any]]", content) for part in _parts(inner)])
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}


def _parts(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    match block["type"]:
        case "text":
            return [{"type": "text", "text": block["text"]}]
        case "tool_reference":
            return [{"type": "text", "text": block["tool_name"]}]
        case "image":
            source = block["source"]
            url = f"data:{source.get('media_type') or 'image/png'};base64,{source['data']}"
            return [{"type": "image_url", "image_url": {"url": url}}]
        case _:
            return []


def _plain(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return parts as one text where they are all text: templates of text models take nothing else."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


# Back


def _reason(finish: str | None, stop: str | None) -> str:
    return "stop_sequence" if stop is not None else _REASONS.get(finish or "stop", "end_turn")


def _usage(usage: Mapping[str, Any] | None) -> dict[str, int]:
    counts: Mapping[str, Any] = usage or {}
    cached = int(obj(counts.get("prompt_tokens_details")).get("cached_tokens") or 0)
    return {
        "input_tokens": int(counts.get("prompt_tokens") or 0) - cached,
        "output_tokens": int(counts.get("completion_tokens") or 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


def message(answer: Mapping[str, Any], id: str, stop: str | None) -> dict[str, Any]:  # noqa: A002 - the field's name
    """Return a chat's whole answer as a message. `stop`: the stop string that ended it."""
    choice = first(answer.get("choices"))
    reply = obj(choice.get("message"))
    blocks: list[dict[str, Any]] = []
    if thoughts := reply.get("reasoning_content") or reply.get("reasoning"):
        blocks.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    if reply.get("content"):
        blocks.append({"type": "text", "text": reply["content"]})
    for call in objects(reply.get("tool_calls")):
        function = obj(call.get("function"))
        head = {"id": call.get("id"), "name": function.get("name")}
        blocks.append({"type": "tool_use", **head, "input": _input(function)})
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": answer.get("model", ""),
        "content": blocks,
        "stop_reason": _reason(choice.get("finish_reason"), stop),
        "stop_sequence": stop,
        "usage": _usage(answer.get("usage")),
    }


def _input(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments: Any = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else {}


_BLOCKS: Mapping[Kind, tuple[Mapping[str, Any], str, str]] = {
    "thoughts": ({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", "thinking"),
    "words": ({"type": "text", "text": ""}, "text_delta", "text"),
    "call": ({"type": "tool_use", "input": {}}, "input_json_delta", "partial_json"),
}
"""How each kind of block begins; the type of its deltas, and the field of their text."""


class MessageEncoder(BlockEncoder):
    """Writes the chunks of a chat as the events of a message."""

    def __init__(self, id: str, model: str) -> None:  # noqa: A002 - the field's name
        super().__init__()
        self._id = f"msg_{id}"
        self._model = model
        self._index = -1

    def start(self) -> bytes:
        """Return the first event."""
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(None)}
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return _event("message_start", message=head | empty)

    def _opened(self, piece: Piece) -> bytes:
        self._index += 1
        head, _, _ = _BLOCKS[piece.kind]
        named = {"id": piece.id, "name": piece.name} if piece.kind == "call" else {}
        return _event("content_block_start", index=self._index, content_block={**head, **named})

    def _added(self, piece: Piece) -> bytes:
        _, kind, field = _BLOCKS[piece.kind]
        return _event("content_block_delta", index=self._index, delta={"type": kind, field: piece.text})

    def _closed(self, piece: Piece, text: str) -> bytes:  # noqa: ARG002 - all blocks end alike
        return _event("content_block_stop", index=self._index)

    def end(self, stop: str | None) -> bytes:
        """Return the last events. `stop`: the stop string that ended the answer."""
        delta = {"stop_reason": _reason(self.finish, stop), "stop_sequence": stop}
        return self.rest() + _event("message_delta", delta=delta, usage=_usage(self.usage)) + _event("message_stop")


def _event(name: str, **fields: Any) -> bytes:
    return sse.encode({"type": name, **fields}, name)


class MessageTranslation:
    """A chat's answers as messages."""

    def whole(self, answer: Mapping[str, Any], id: str, stop: str | None, spoke: float | None) -> dict[str, Any]:  # noqa: A002, ARG002 - the fields' names
        """Return a whole answer, as `message` does."""
        return message(answer, id, stop)

    def encoder(self, id: str, model: str) -> MessageEncoder:  # noqa: A002 - the field's name
        """Return what writes a stream."""
        return MessageEncoder(id, model)
