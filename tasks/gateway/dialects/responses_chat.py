"""OpenAI's Responses through an engine's chat: for engines whose own Responses say less than their chat does.

Thoughts are told as the summary of a reasoning item, which is what agents show of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.gateway.dialects import sse, turns
from tasks.gateway.dialects.blocks import BlockEncoder, Kind, Piece, pieces
from tasks.gateway.dialects.json_values import first, obj, objects

_SAME = ("model", "temperature", "top_p", "stream", "parallel_tool_calls", "enable_thinking", "chat_template_kwargs")
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "reasoning": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}
"""Fields of a request that its answer repeats -> what they are where the request does not say."""
_MODEL, _CUT = "assistant", "length"
_PREFIXES: Mapping[Kind, str] = {"thoughts": "rs", "words": "msg", "call": "fc"}
_PARTS: Mapping[Kind, str] = {"thoughts": "reasoning_summary_part", "words": "content_part"}
_TEXTS: Mapping[Kind, str] = {
    "thoughts": "reasoning_summary_text",
    "words": "output_text",
    "call": "function_call_arguments",
}
_INDEX: Mapping[Kind, Mapping[str, int]] = {"thoughts": {"summary_index": 0}, "words": {"content_index": 0}, "call": {}}
"""Where in its item a text is."""


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat that asks for the same. `body`: the fields of schemas.Responses, checked."""
    chat: dict[str, Any] = {name: body[name] for name in _SAME if name in body}
    instructions = [{"role": "system", "content": text}] if (text := body.get("instructions")) else []
    chat["messages"] = turns.arranged([*instructions, *_messages(body["input"])])
    if limit := body.get("max_output_tokens"):
        chat["max_tokens"] = limit
    if tools := [_tool(tool) for tool in objects(body.get("tools")) if tool["type"] == "function"]:
        chat["tools"] = tools
    if choice := body.get("tool_choice"):
        named = obj(choice).get("name")
        chat["tool_choice"] = {"type": "function", "function": {"name": named}} if named else choice
    if effort := obj(body.get("reasoning")).get("effort"):
        chat["reasoning_effort"] = effort
    if form := obj(obj(body.get("text")).get("format")):
        chat["response_format"] = _form(form)
    return chat


def dropped_tools(body: Mapping[str, Any]) -> list[str]:
    """Return the kinds of tools that only OpenAI has, as they are named where they are left out."""
    return sorted({f"tools.{tool['type']}" for tool in objects(body.get("tools")) if tool["type"] != "function"})


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _form(form: Mapping[str, Any]) -> dict[str, Any]:
    if form["type"] != "json_schema":
        return {"type": form["type"]}
    schema = {"name": "answer", **{name: value for name, value in form.items() if name != "type"}}
    return {"type": "json_schema", "json_schema": schema}


def _messages(conversation: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the input as a chat's messages; the items of one turn of the model become one message."""
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    messages: list[dict[str, Any]] = []
    for part in filter(None, map(_message, conversation)):
        if messages and _continues(messages[-1], part):
            messages[-1] = _merged(messages[-1], part)
        else:
            messages.append(part)
    return [{"content": "", **message} for message in messages]


def _continues(message: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Return whether a part belongs to the same turn of the model: thoughts come first, then words, then calls."""
    if (message["role"], part["role"]) != (_MODEL, _MODEL):
        return False
    return "tool_calls" in part or not ("content" in message or "tool_calls" in message)


def _merged(message: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    both = {**message, **part}
    thoughts = [turn["reasoning_content"] for turn in (message, part) if "reasoning_content" in turn]
    if thoughts:
        both["reasoning_content"] = "\n".join(thoughts)
    if calls := [*message.get("tool_calls", ()), *part.get("tool_calls", ())]:
        both["tool_calls"] = calls
    return both


def _message(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return one item as a message, or as a part of one of the model's; None for thoughts that are not told."""
    match item.get("type", "message"):
        case "reasoning":
            parts = objects(item.get("content")) or objects(item.get("summary"))
            thoughts = "\n".join(part["text"] for part in parts)
            return {"role": _MODEL, "reasoning_content": thoughts} if thoughts else None
        case "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            return {"role": _MODEL, "tool_calls": [{"id": item["call_id"], "type": "function", "function": function}]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item["call_id"], "content": _content(item["output"])}
        case _:
            role = "system" if item["role"] == "developer" else item["role"]
            return {"role": role, "content": _content(item["content"])}


def _content(content: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    """Return parts as one text where they are all text: templates of text models take nothing else."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part.get("text", part.get("refusal", ""))}


# Back


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    cached = int(obj(usage.get("prompt_tokens_details")).get("cached_tokens") or 0)
    thoughts = int(obj(usage.get("completion_tokens_details")).get("reasoning_tokens") or 0)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": read + written,
    }


def _item(id: str, piece: Piece, text: str, status: str) -> dict[str, Any]:  # noqa: A002 - the field's name
    """Return an item of the output; one that has no text yet has no parts."""
    parts = [_text(piece.kind, text)] if text else []
    head = {"id": id, "status": status}
    match piece.kind:
        case "thoughts":
            return {"type": "reasoning", **head, "summary": parts}
        case "words":
            return {"type": "message", **head, "role": _MODEL, "content": parts}
        case "call":
            call = {"call_id": piece.id or f"call_{id}", "name": piece.name or "", "arguments": text}
            return {"type": "function_call", **head, **call}


def _text(kind: Kind, text: str) -> dict[str, Any]:
    if kind == "thoughts":
        return {"type": "summary_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _event(name: str, number: int, fields: Mapping[str, Any]) -> bytes:
    return sse.encode({"type": name, "sequence_number": number, **fields}, name)


class ResponseEncoder(BlockEncoder):
    """Writes the chunks of a chat as the events of a response."""

    def __init__(self, translation: ResponseTranslation, id: str) -> None:  # noqa: A002 - the field's name
        super().__init__()
        self._translation = translation
        self._id = id
        self._number = -1
        self._items: list[dict[str, Any]] = []

    def start(self) -> bytes:
        """Return the first events."""
        response = self._translation.response(self._id, [], None, None)
        return self._event("created", response=response) + self._event("in_progress", response=response)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        return _event(f"response.{name}", self._number, fields)

    def _item_id(self, piece: Piece) -> str:
        return f"{_PREFIXES[piece.kind]}_{self._id}_{len(self._items)}"

    def _at(self, piece: Piece) -> dict[str, Any]:
        """Return where in the response a piece belongs."""
        return {"item_id": self._item_id(piece), "output_index": len(self._items), **_INDEX[piece.kind]}

    def _opened(self, piece: Piece) -> bytes:
        item = _item(self._item_id(piece), piece, "", "in_progress")
        added = self._event("output_item.added", output_index=len(self._items), item=item)
        if piece.kind == "call":
            return added
        return added + self._event(f"{_PARTS[piece.kind]}.added", **self._at(piece), part=_text(piece.kind, ""))

    def _added(self, piece: Piece) -> bytes:
        more: dict[str, Any] = {"logprobs": []} if piece.kind == "words" else {}
        return self._event(f"{_TEXTS[piece.kind]}.delta", **self._at(piece), delta=piece.text, **more)

    def _closed(self, piece: Piece, text: str) -> bytes:
        item = _item(self._item_id(piece), piece, text, "incomplete" if self._is_cut() else "completed")
        if piece.kind == "call":
            events = self._event(f"{_TEXTS[piece.kind]}.done", **self._at(piece), name=item["name"], arguments=text)
        else:
            more: dict[str, Any] = {"logprobs": []} if piece.kind == "words" else {}
            events = self._event(f"{_TEXTS[piece.kind]}.done", **self._at(piece), text=text, **more)
            events += self._event(f"{_PARTS[piece.kind]}.done", **self._at(piece), part=_text(piece.kind, text))
        events += self._event("output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        return events

    def _is_cut(self) -> bool:
        return self.finish == _CUT

    def end(self, stop: str | None) -> bytes:  # noqa: ARG002 - Responses name no stop string
        """Return the last events.

        An answer that was cut is `completed` too, and its status says the rest, as with both engines: OpenAI's own
        client and Codex take `response.incomplete` for a failure.
        """
        events = self.rest()
        response = self._translation.response(self._id, self._items, self.finish or "stop", self.usage)
        return events + self._event("completed", response=response)


class ResponseTranslation:
    """A chat's answers as responses."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Take the fields of the request, as they are asked: an answer repeats some of them."""
        self._model = body["model"]
        self._echoed = {name: body.get(name, default) for name, default in _ECHOED.items()}
        self._created = int(time.time())

    def response(
        self,
        id: str,  # noqa: A002 - the field's name
        output: Sequence[Mapping[str, Any]],
        finish: str | None,
        usage: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return a response with its output. `finish`: a chat's reason, None while the answer is written."""
        cut = finish == _CUT
        status = "in_progress" if finish is None else "incomplete" if cut else "completed"
        return {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self._model,
            "output": list(output),
            **self._echoed,
            "metadata": {},
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": _usage(usage) if usage else None,
        }

    def whole(self, answer: Mapping[str, Any], id: str, stop: str | None, spoke: float | None) -> dict[str, Any]:  # noqa: A002, ARG002 - the protocol's names
        """Return a chat's whole answer as a response."""
        choice = first(answer.get("choices"))
        finish = str(choice.get("finish_reason") or "stop")
        items = [
            _item(f"{_PREFIXES[piece.kind]}_{id}_{at}", piece, piece.text, "completed")
            for at, piece in enumerate(pieces(obj(choice.get("message"))))
        ]
        if items and finish == _CUT:
            items[-1]["status"] = "incomplete"
        return self.response(id, items, finish, answer.get("usage"))

    def encoder(self, id: str, model: str) -> ResponseEncoder:  # noqa: A002, ARG002 - the protocol's names
        """Return what writes a stream."""
        return ResponseEncoder(self, id)
