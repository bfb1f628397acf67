"""Whether a model thinks before it answers, and how long: the tier's default, and what a request says instead. Pure.

A request says it by `chat_template_kwargs.enable_thinking` or `enable_thinking`, else by `reasoning_effort`, else by a
budget alone; Anthropic's and the Responses' words are turned into these before. The engine always gets the switch, as
rapid-mlx turns thinking off by itself where a request has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog.engines import EFFORTS, Abilities, ModelKind
from tasks.gateway.dialects.json_values import obj

USUAL_BUDGET = 4096
"""Tokens where thinking is asked for of a tier that does not think by default, and the request has no budget."""
EFFORT_BUDGETS: Mapping[str, int] = {"minimal": 256, "low": 1024, "medium": 4096, "high": 8192, "xhigh": 16_384}
"""Tokens; `max` has none. LiteLLM's budgets for low, medium and high are 1024, 2048 and 4096; from medium on these are
twice as large, for models that think in small steps."""
LEAST_ROOM = 512
"""An answer that may have fewer tokens in all does not think by default: nothing would be left of it."""
ANSWER_SHARE = 4
"""A quarter of an answer's tokens stays for what follows the thoughts."""
EFFORT = "thinking_effort"
"""A field of our own: an effort that does not ask for thinking, and limits it where the model thinks."""


@dataclass(frozen=True)
class Template:
    """What the chat template of a model that thinks knows, and the engine's limit of an answer."""

    kind: ModelKind
    switch: bool
    """Whether it can switch thinking off."""
    keeps: bool
    """Whether it can keep the thoughts of all earlier turns."""
    reads: bool
    """Whether it takes thoughts in <think> at the start of a turn's text."""
    efforts: tuple[str, ...]
    """Words that it knows for an effort, from the least on."""
    max_tokens: int
    """Tokens of an answer where neither the caller nor the tier names a limit."""


@dataclass(frozen=True)
class TierThinking:
    """How the model of one tier thinks by default."""

    template: Template
    on: bool
    budget: int
    """Tokens of thoughts at most where the request says nothing."""
    longest: int
    """Tokens of the longest answer."""


@dataclass(frozen=True)
class ThinkingPlan:
    """What was decided for one request."""

    on: bool = False
    budget: int | None = None
    """Tokens after which the gateway ends the thoughts; None where the engine does, or there is no limit."""
    kept: bool = False
    """Whether later turns can have the thoughts in their prompt."""


NONE = ThinkingPlan()


@dataclass(frozen=True)
class _ThinkingRequest:
    """What a request says."""

    on: bool | None
    budget: int | None
    effort: str | None


def of_tier(template: Template | None, defaults: Mapping[str, Any], longest: int) -> TierThinking | None:
    """Return how a tier thinks by its defaults, by the names of state.stack.Defaults; None where it does not think."""
    if template is None:
        return None
    budget = defaults.get("thinking_budget") or USUAL_BUDGET
    return TierThinking(template, defaults.get("thinking") is not False, budget, longest)


def settle(chat: dict[str, Any], tier: TierThinking, can: Abilities) -> ThinkingPlan:
    """Write into a chat's body whether to think and how long, in place of the fields that say so; return it."""
    template, wish = tier.template, _wish(chat)
    arguments = dict(obj(chat.pop("chat_template_kwargs", None)))
    for name in ("enable_thinking", "thinking_budget", "reasoning_effort"):
        arguments.pop(name, None)
    thinks = not template.switch or (_by_default(tier, chat) if wish.on is None else wish.on)
    if template.switch:
        arguments["enable_thinking"] = thinks
    if template.keeps:
        arguments.setdefault("preserve_thinking", True)
    if thinks and template.efforts and wish.effort:
        arguments["reasoning_effort"] = _nearest(wish.effort, template.efforts)
    if arguments:
        chat["chat_template_kwargs"] = arguments
    if not thinks:
        return NONE
    budget = _with_room(chat, tier, _budget(wish, tier))
    return ThinkingPlan(on=True, budget=_left_to_us(chat, template, can, budget), kept=template.reads)


def _wish(chat: dict[str, Any]) -> _ThinkingRequest:
    """Return what a chat's body says, and take it out."""
    arguments = obj(chat.get("chat_template_kwargs"))
    effort: str | None = chat.pop("reasoning_effort", None) or arguments.get("reasoning_effort")
    budget: int | None = chat.pop("thinking_token_budget", None) or arguments.get("thinking_budget")
    switch = chat.pop("enable_thinking", None)
    switch = arguments.get("enable_thinking", switch)
    asks = None if effort is None and budget is None else effort != "none"
    on = switch if isinstance(switch, bool) else asks
    effort = chat.pop(EFFORT, None) or effort
    effort = effort if effort in EFFORTS else None
    return _ThinkingRequest(on, budget if isinstance(budget, int) and budget > 0 else None, effort)


def _by_default(tier: TierThinking, chat: Mapping[str, Any]) -> bool:
    return tier.on and int(chat.get("max_tokens") or LEAST_ROOM) >= LEAST_ROOM


def _nearest(effort: str, words: tuple[str, ...]) -> str:
    """Return the template's word for an effort: itself, else the next one above, else its greatest."""
    above = [word for word in words if EFFORTS.index(word) >= EFFORTS.index(effort)]
    return above[0] if above else words[-1]


def _budget(wish: _ThinkingRequest, tier: TierThinking) -> int | None:
    """Return the tokens to think at most; None for no limit but the answer's own."""
    if not tier.template.switch:
        return None  # it cannot be made to answer without thinking
    if wish.budget is not None:
        return wish.budget
    if wish.effort is not None:
        return None if tier.template.efforts else EFFORT_BUDGETS.get(wish.effort)
    return tier.budget


def _with_room(chat: dict[str, Any], tier: TierThinking, budget: int | None) -> int | None:
    """Return the budget that leaves room for an answer; where the caller names no limit, the thoughts come on top."""
    if budget is None:
        return None
    if limit := chat.get("max_tokens"):
        return max(1, min(budget, int(limit) - int(limit) // ANSWER_SHARE))
    budget = min(budget, tier.longest - tier.longest // ANSWER_SHARE)
    chat["max_tokens"] = min(tier.longest, tier.template.max_tokens + budget)
    return budget


def _left_to_us(chat: dict[str, Any], template: Template, can: Abilities, budget: int | None) -> int | None:
    """Name the budget to the engine where it heeds one; return it where the gateway has to end the thoughts."""
    limit = can.thinking_budget
    if budget is None or template.kind not in limit.kinds or (chat.get("tools") and not limit.with_tools):
        return budget
    chat[limit.field] = budget
    return None
