"""A document's link in a request: LiteLLM 1.106.2 opens it itself, past the wire, wherever it leads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_LINKS = ("http://", "https://")


def followed(body: Mapping[str, Any]) -> str | None:
    """Give the first link that would be opened; None when there is none.

    Documents are called file by /v1/chat/completions, input_file by /v1/responses, document by /v1/messages; they
    may lie in what a tool gave back. Not by recursion: a body may be nested deeper than Python's stack.
    """
    waiting: list[Any] = [body.get("messages"), body.get("input")]
    while waiting:
        match waiting.pop():
            case [*parts]:
                waiting += parts
            case {"type": "file" | "input_file" | "document"} as document:
                if link := _link(document):
                    return link
            case {**part}:
                waiting += [part.get("content"), part.get("output")]
            case _:
                pass
    return None


def _link(document: Mapping[str, Any]) -> str | None:
    """Find a link in a part, or in its `file` or `source`."""
    values: list[Any] = list(document.values())
    for each in values.copy():
        if isinstance(each, dict):
            values += cast("dict[str, Any]", each).values()
    return next(filter(_is_link, values), None)


def _is_link(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower().startswith(_LINKS)
