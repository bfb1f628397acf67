"""What an engine is asked for a checked request, and what the gateway has to do about its answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

from catalog.engines import Abilities
from state.settings import LONGEST_ANSWER
from tasks.gateway.dialects import anthropic_chat, defaults, engine_fields, json_schema, responses_chat
from tasks.gateway.dialects.dialect import CHAT, COMPLETIONS, MESSAGES, OLLAMA_GENERATE, RESPONSES, Dialect
from tasks.gateway.dialects.json_values import obj
from tasks.gateway.dialects.schemas import Fields
from tasks.gateway.dialects.thinking import EFFORT, NONE, ThinkingPlan, TierThinking, settle
from tasks.gateway.ollama import chat as ollama_chat
from tasks.gateway.ollama.chat import OllamaTranslation

_NONE: Mapping[str, Any] = MappingProxyType({})
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_OURS = (
    *("disable_fallbacks", "n", "best_of", "modalities", "audio", "echo", "container", "mcp_servers", "background"),
    *("keep_alive", "ttl"),
)
"""Fields that the checks have handled."""


NAMED = 20
"""Of what was left out; the names go into a header."""


class Encoder(Protocol):
    """Writes a chat's chunks as another dialect's events."""

    def start(self) -> bytes:
        """Return the first events."""
        ...

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """Return the events of one chunk."""
        ...

    def end(self, stop: str | None) -> bytes:
        """Return the last events. `stop`: the stop string that ended the answer."""
        ...


class Translation(Protocol):
    """Writes a chat's answer in another dialect. `id` is the request's, without a prefix."""

    def whole(self, answer: Mapping[str, Any], id: str, stop: str | None, spoke: float | None) -> dict[str, Any]:  # noqa: A002 - the field's name
        """Return a whole answer. `stop`: the stop string that ended it; `spoke`: when it began (monotonic seconds)."""
        ...

    def encoder(self, id: str, model: str) -> Encoder:  # noqa: A002 - the field's name
        """Return what writes a stream."""
        ...


@dataclass(frozen=True)
class Plan:
    """One request to an engine."""

    dialect: Dialect
    """As which the engine is asked."""
    body: dict[str, Any]
    streams: bool
    """Whether the caller gets a stream."""
    shows_usage: bool = True
    """Whether a stream's caller asked for its usage."""
    stops: tuple[str, ...] = ()
    """Stop strings that the engine does not honor."""
    schema: Mapping[str, Any] | None = None
    """What the answer has to match, and the engine does not see to it."""
    needs_call: bool = False
    """Whether the answer has to call a tool. An engine that enforces it may still stream text and then an error."""
    translation: Translation | None = None
    """What writes a chat's answer in the dialect of the request, where that is another one."""
    one_call: bool = False
    """Whether at most one tool may be called: `parallel_tool_calls` false, which not every engine heeds."""
    thinking: ThinkingPlan = NONE
    """Whether the model thinks, and what the gateway has to limit."""
    timed: bool = False
    """Whether a whole answer says how long its prompt and its words took."""
    dropped: list[str] = field(default_factory=list[str])
    """What was left out and could be missed, such as tools that only OpenAI has."""

    @property
    def asks_stream(self) -> bool:
        """Whether the engine is asked for a stream: one can be cut off at a stop string, and be checked when cut."""
        checked = self.schema is not None and self.dialect is CHAT
        return self.streams or bool(self.stops) or checked or self.timed or self.thinking.budget is not None

    @property
    def chunked(self) -> bool:
        """Whether the answer has to be gone through chunk by chunk; else its bytes pass as they are."""
        thinks = self.thinking.budget is not None or self.thinking.kept
        checked = self.schema is not None or self.one_call or thinks
        return self.translation is not None or bool(self.stops) or (self.dialect is CHAT and checked)


def plan(
    dialect: Dialect,
    request: Fields,
    model: str,
    can: Abilities,
    tier_defaults: Mapping[str, Any] = MappingProxyType({}),
    *,
    longest_answer: int = LONGEST_ANSWER,
    thinking: TierThinking | None = None,
    times: tuple[float, float] = (0.0, 0.0),
) -> Plan:
    """Return how to ask an engine that has the abilities `can` and knows its model as `model`.

    `tier_defaults`: what is filled in where the request says nothing; `longest_answer`: tokens, where it asks for more;
    `thinking`: how the tier's model thinks, None where it does not; `times`: when the request came, and
    how long it waited for its model, in monotonic seconds.
    """
    body = request.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
    if dialect.ollama:
        translation = OllamaTranslation(body["model"], *times, generates=dialect is OLLAMA_GENERATE)
        body, dialect = ollama_chat.to_chat(body), CHAT
    else:
        translation = None
    timed = translation is not None
    body = defaults.fill(dialect, body, tier_defaults)
    body["model"] = model
    engine_fields.limit(body, longest_answer)
    for name in _OURS:
        body.pop(name, None)
    if dialect is RESPONSES:
        return _responses(body, can, thinking)
    if dialect is MESSAGES:
        can = replace(can, stop_strings=False)  # a chat names no stop string
        chat = _chat(anthropic_chat.to_chat(body), can, thinking)
        return replace(chat, shows_usage=True, translation=anthropic_chat.MessageTranslation())
    if dialect in {CHAT, COMPLETIONS}:
        chat = _chat(body, can, thinking if dialect is CHAT else None, timed=timed)
        return replace(chat, translation=translation) if dialect is CHAT else _completion(chat)
    return Plan(dialect, body, streams=False)


def _chat(body: dict[str, Any], can: Abilities, tier: TierThinking | None, *, timed: bool = False) -> Plan:
    stops, schema = _take_stops(body, can), None
    if "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    thinking = settle(body, tier, can) if tier else NONE
    body.pop(EFFORT, None)
    engine_fields.chat(body, can)
    form: Mapping[str, Any] = body.get("response_format") or {}
    if form.get("type") == "text":
        del body["response_format"]
    elif form and not can.json_schema:
        schema = form["json_schema"]["schema"] if form["type"] == "json_schema" else _ANY_OBJECT
        del body["response_format"]
        _ask_for(body, schema)
    needs_call = body.get("tool_choice") not in (None, "auto", "none")
    shown = bool(obj(body.pop("stream_options", None)).get("include_usage"))
    one_call = bool(body.get("tools")) and body.get("parallel_tool_calls") is False
    chat = Plan(CHAT, body, bool(body.get("stream")), shown, stops, schema, needs_call)
    chat = replace(chat, one_call=one_call, thinking=thinking, timed=timed)
    body.pop("stream", None)
    if chat.asks_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return chat


def _completion(chat: Plan) -> Plan:
    prompt = chat.body["prompt"]
    body = {**chat.body, "prompt": prompt if isinstance(prompt, str) else prompt[0]}
    return Plan(COMPLETIONS, body, chat.streams, chat.shows_usage, chat.stops)


def _take_stops(body: dict[str, Any], can: Abilities) -> tuple[str, ...]:
    """Return the stop strings that are the gateway's to find, and take them out of the body."""
    value = body.pop("stop", None) or ()
    stops = (value,) if isinstance(value, str) else tuple(value)
    if stops and can.stop_strings:
        body["stop"] = list(stops)
        return ()
    return stops


def _ask_for(body: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Put the order for JSON into a chat's first system message."""
    order, messages = json_schema.order(schema), list(body["messages"])
    if messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{order}"}
    else:
        messages.insert(0, {"role": "system", "content": order})
    body["messages"] = messages


def _responses(body: dict[str, Any], can: Abilities, thinking: TierThinking | None) -> Plan:
    chat = _chat(responses_chat.to_chat(body), can, thinking)
    dropped = responses_chat.dropped_tools(body)[:NAMED]
    return replace(chat, shows_usage=True, translation=responses_chat.ResponseTranslation(body), dropped=dropped)
