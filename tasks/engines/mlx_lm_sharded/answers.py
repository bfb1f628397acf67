"""What mlx_lm.server is asked, and how its stream is told in OpenAI's shape. Pure: bodies in, bodies and events out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

COMMON = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "presence_penalty",
        "repetition_penalty",
        "stop",
        "temperature",
        "top_k",
        "top_p",
    }
)
FIELDS: Mapping[str, frozenset[str]] = {
    "/v1/chat/completions": COMMON | {"chat_template_kwargs", "messages", "tools"},
    "/v1/completions": COMMON | {"prompt"},
}
"""What is passed on, by path. Not `seed`, with which mlx_lm.server leaves its batches, and with ranks cannot stop an
answer; not `model`, `adapters` and `draft_model`, by which it would load another folder."""
LIMITS = ("max_completion_tokens", "max_tokens")


class NotServed(Exception):
    """The request is not served; the text says why."""


@dataclass(frozen=True)
class Asked:
    """One request as rank 0 is asked, and how its client wants it told."""

    body: dict[str, Any]
    model: str
    streams: bool
    wants_usage: bool
    """Whether a stream ends with its counts."""


def asked(path: str, body: Any, model: str, longest: int) -> Asked:
    """Return what rank 0 is asked for `body`, always for a stream: it notices that a client left only as it writes.

    `longest`: tokens of an answer at most. Raises NotServed.
    """
    if not isinstance(body, dict):
        raise NotServed("The body must be a JSON object.")
    fields = {name: value for name, value in cast("dict[str, Any]", body).items() if value is not None}
    if fields.get("model", model) != model:
        raise NotServed(f"There is no model {fields['model']!r} here.")
    limits = [fields[name] for name in LIMITS if name in fields]
    if not all(isinstance(limit, int) and 0 < limit <= longest for limit in limits):
        raise NotServed(f"max_tokens must be from 1 to {longest}.")
    if fields.get("n", 1) != 1:
        raise NotServed("n must be 1.")
    options: Any = fields.get("stream_options") or {}
    passed = {name: value for name, value in fields.items() if name in FIELDS[path]}
    return Asked(
        passed | {"model": "default_model", "stream": True, "stream_options": {"include_usage": True}},
        model,
        streams=fields.get("stream") is True,
        wants_usage=bool(options.get("include_usage")),
    )


def told(event: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return an event of rank 0's stream with the model's name, and thoughts where OpenAI's dialects have them."""
    choices = [_choice(choice) for choice in event["choices"]]
    return {**event, "model": model, "choices": choices}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    delta: dict[str, Any] | None = choice.get("delta")
    if delta is None or "reasoning" not in delta:
        return dict(choice)
    renamed = {"reasoning_content" if name == "reasoning" else name: value for name, value in delta.items()}
    return {**choice, "delta": renamed}


def is_usage(event: Mapping[str, Any]) -> bool:
    """Return whether an event has the counts and nothing else."""
    return not event["choices"]


@dataclass
class AnswerFold:
    """A stream folded into one answer."""

    last: dict[str, Any] = field(default_factory=dict[str, Any])
    texts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event, as `told` returned it."""
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            self.last = {name: value for name, value in event.items() if name not in {"choices", "usage"}}
            self.finish = choice.get("finish_reason") or self.finish
            delta: dict[str, Any] = choice.get("delta") or {"text": choice.get("text", "")}
            self.calls += delta.get("tool_calls") or ()
            for name in ("content", "reasoning_content", "text"):
                if delta.get(name):
                    self.texts.setdefault(name, []).append(delta[name])

    def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        chat = str(self.last.get("object", "")).startswith("chat.")
        choice = {"message": self._message()} if chat else {"text": "".join(self.texts.get("text", ()))}
        return {
            **self.last,
            "object": "chat.completion" if chat else "text_completion",
            "choices": [{"index": 0, "finish_reason": self.finish, **choice}],
            "usage": self.usage,
        }

    def _message(self) -> dict[str, Any]:
        texts = {name: "".join(parts) for name, parts in self.texts.items()}
        calls = [{name: value for name, value in call.items() if name != "index"} for call in self.calls]
        message = {"role": "assistant", "content": None if calls else "", **texts}
        return message | ({"tool_calls": calls} if calls else {})


def folded(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a whole stream as one answer."""
    fold = AnswerFold()
    for event in events:
        fold.add(event)
    return fold.answer()
