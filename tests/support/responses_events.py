"""What a stream of OpenAI's Responses must be, by its reference; strictly typed clients break on less."""

from __future__ import annotations

import json
from typing import Any

PARTS = {
    "response.output_text.delta": "response.content_part.added",
    "response.reasoning_text.delta": "response.content_part.added",
    "response.reasoning_summary_text.delta": "response.reasoning_summary_part.added",
}
"""The events of a text -> those by which the part begins that it belongs to."""


def read(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def check(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the whole response at the end of a stream. Raises AssertionError where an event is out of place."""
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created"
    last = events[-1]
    assert last["type"] == "response.completed", "OpenAI's client gives up on `response.incomplete`"
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    begun, done = {}, {}
    texts: dict[int, str] = {}
    for event in events:
        kind, at = event["type"], event.get("output_index", -1)
        if kind == "response.output_item.added":
            assert at == len(begun), "each item has the next index"
            begun[at] = {"id": event["item"]["id"], "parts": set()}
        elif kind.endswith("part.added"):
            begun[at]["parts"].add(kind)
        elif kind.endswith(".delta"):
            assert at not in done, "an item that is done takes nothing more"
            assert event["item_id"] == begun[at]["id"]
            assert kind not in PARTS or PARTS[kind] in begun[at]["parts"]
            texts[at] = texts.get(at, "") + event["delta"]
        elif kind == "response.output_item.done":
            done[at] = event["item"]
    assert done.keys() == begun.keys()
    assert [done[at] for at in sorted(done)] == last["response"]["output"]
    for at, item in done.items():
        assert _text(item) == texts.get(at, "")
        if item["type"] == "function_call":
            assert any(event["type"].endswith("arguments.done") and event["output_index"] == at for event in events)
    return last["response"]


def _text(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        return item["arguments"]
    return "".join(part["text"] for part in [*item.get("summary", ()), *item.get("content", ())])
