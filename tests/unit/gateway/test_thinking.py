"""Whether a model thinks, and how long: by its tier, by the request, and as its engine can be told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.engines import ModelKind, abilities
from tasks.gateway.dialects import chat_stream, plans, schemas, thinking
from tasks.gateway.dialects.chat_stream import Fold, Thoughts
from tasks.gateway.dialects.dialect import CHAT, MESSAGES, Dialect
from tasks.gateway.dialects.thinking import Template, ThinkingPlan

VLLM_MLX, RAPID_MLX = abilities("vllm-mlx", "cpu"), abilities("rapid-mlx", "cpu")
USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
QWEN = Template(ModelKind.HYBRID, switch=True, keeps=True, reads=True, efforts=(), max_tokens=4096)
EFFORTS = ("low", "medium", "high")
OSS = Template(ModelKind.SLIDING, switch=False, keeps=False, reads=False, efforts=EFFORTS, max_tokens=64)
STANDARD: dict[str, Any] = {"thinking": True, "thinking_budget": 2000}
FAST: dict[str, Any] = {"thinking": False}


def planned(
    fields: dict[str, Any],
    *,
    dialect: Dialect = CHAT,
    defaults: dict[str, Any] = STANDARD,
    template: Template = QWEN,
    can: Any = RAPID_MLX,
) -> plans.Plan:
    request = dialect.schema.model_validate({"model": "m", "messages": USER, **fields})
    tier = thinking.of_tier(template, defaults, 16_384)
    return plans.plan(dialect, request, "m", can, defaults, thinking=tier)


def switch(plan: plans.Plan) -> Any:
    return plan.body["chat_template_kwargs"]["enable_thinking"]


@pytest.mark.parametrize(
    ("fields", "standard", "fast"),
    [
        ({}, 2000, None),
        ({"enable_thinking": True}, 2000, thinking.USUAL_BUDGET),
        ({"enable_thinking": False}, None, None),
        ({"chat_template_kwargs": {"enable_thinking": True}}, 2000, thinking.USUAL_BUDGET),
        ({"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": True}, None, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, None, None),
        ({"reasoning_effort": "none"}, None, None),
        ({"reasoning_effort": "low"}, 1024, 1024),
        ({"thinking_token_budget": 50}, 50, 50),
        ({"max_tokens": 1000}, 750, None),
        ({"max_completion_tokens": 1000}, 750, None),
        ({"max_tokens": 100}, None, None),
        ({"max_tokens": 100, "enable_thinking": True}, 75, 75),
    ],
)
def test_a_request_comes_before_its_tier(fields: dict[str, Any], standard: int | None, fast: int | None):
    for defaults, budget in ((STANDARD, standard), (FAST, fast)):
        plan = planned(fields, defaults=defaults)
        assert switch(plan) is (budget is not None)
        assert plan.body.get("reasoning_max_tokens") == budget
        assert "reasoning_effort" not in plan.body
        assert plan.body["chat_template_kwargs"]["preserve_thinking"] is True


@pytest.mark.parametrize(
    ("fields", "on", "budget"),
    [
        ({}, True, 2000),
        ({"thinking": {"type": "adaptive"}}, True, 2000),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, True, 2000),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 1024),
        ({"thinking": {"type": "enabled", "budget_tokens": 1500}}, True, 1500),
        ({"thinking": {"type": "disabled"}}, False, None),
    ],
)
def test_anthropics_words_are_the_same(fields: dict[str, Any], on: bool, budget: int | None):
    plan = planned({"max_tokens": 32_000, **fields}, dialect=MESSAGES)
    assert (switch(plan), plan.body.get("reasoning_max_tokens")) == (on, budget)


def test_an_effort_of_anthropics_does_not_make_a_tier_think_that_does_not():
    fields = {"max_tokens": 9000, "thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}
    plan = planned(fields, dialect=MESSAGES, defaults=FAST)
    assert switch(plan) is False
    assert thinking.EFFORT not in plan.body


@pytest.mark.parametrize(
    ("can", "kind", "fields", "field"),
    [
        (RAPID_MLX, ModelKind.HYBRID, {}, "reasoning_max_tokens"),
        (RAPID_MLX, ModelKind.HYBRID, {"tools": TOOLS}, None),
        (RAPID_MLX, ModelKind.HYBRID_VISION, {}, None),
        (VLLM_MLX, ModelKind.HYBRID, {}, None),
        (VLLM_MLX, ModelKind.HYBRID_VISION, {"tools": TOOLS}, "thinking_token_budget"),
    ],
)
def test_the_gateway_ends_thoughts_where_the_engine_does_not(can: Any, kind: ModelKind, fields: Any, field: str | None):
    plan = planned(fields, can=can, template=replace(QWEN, kind=kind))
    assert plan.body.get(field or "") == (2000 if field else None)
    assert plan.thinking == ThinkingPlan(on=True, budget=None if field else 2000, kept=True)
    assert plan.body.get("stream") is (None if field else True), "a stream alone can be ended"


def test_where_no_limit_is_named_thoughts_come_on_top_of_the_answer():
    assert planned({}).body["max_tokens"] == 4096 + 2000


def test_a_model_that_cannot_help_thinking_is_told_how_much():
    plan = planned({"reasoning_effort": "minimal", "enable_thinking": False}, template=OSS, defaults=FAST)
    assert plan.body["chat_template_kwargs"] == {"reasoning_effort": "low"}
    assert (plan.thinking.on, plan.thinking.budget, "max_tokens" in plan.body) == (True, None, False)


def test_a_model_that_does_not_think_gets_what_was_asked():
    request = schemas.Chat.model_validate({"model": "m", "messages": USER, "reasoning_effort": "low"})
    assert plans.plan(CHAT, request, "m", RAPID_MLX).body == {"model": "m", "messages": USER, "reasoning_effort": "low"}


# The end of thoughts in a stream


def piece(usage: dict[str, Any] | None = None, finish: str | None = None, **delta: Any) -> bytes:
    choices = [] if usage else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return (
        b"data: " + json.dumps({"id": "a", "choices": choices} | ({"usage": usage} if usage else {})).encode() + b"\n\n"
    )


def said(thoughts: Sequence[str], words: Sequence[str]) -> bytes:
    """Return a chat's stream."""
    thought = [piece(reasoning_content=text) for text in thoughts]
    spoken = [piece(content=text) for text in words]
    counts = {"prompt_tokens": 7, "completion_tokens": len(thoughts) + len(words)}
    end = [piece(finish="stop"), piece(counts), b"data: [DONE]\n\n"]
    return b"".join([piece(role="assistant"), *thought, *spoken, *end])


def limited(content: bytes, budget: int) -> tuple[Fold, list[str]]:
    """Return the answer after a budget, and the thoughts that it was resumed after."""
    fold, resumed = Fold(), list[str]()

    async def source(content: bytes) -> AsyncIterator[bytes]:
        yield content

    async def resume(thoughts: str) -> AsyncIterator[bytes]:
        resumed.append(thoughts)
        return source(said([], ["so", " be", " it"]))

    async def count(answered: int) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": answered}

    async def run() -> None:
        async for chunk in Thoughts(budget, resume, count).limited(chat_stream.chunks(source(content))):
            fold.add(chunk)

    asyncio.run(run())
    return fold, resumed


@given(st.integers(0, 9), st.integers(0, 5), st.integers(1, 9))
def test_thoughts_end_at_their_budget_and_never_the_answer(thoughts: int, words: int, budget: int):
    fold, resumed = limited(said(["t"] * thoughts, ["w"] * words), budget)
    message = fold.answer()["choices"][0]["message"]
    assert message.get("reasoning_content", "") == "t" * min(thoughts, budget)
    assert resumed == (["t" * budget] if thoughts > budget else [])
    assert fold.text == ("so be it" if thoughts > budget else "w" * words)
    assert fold.finish == "stop"
    assert fold.usage is not None
    answer = budget + 3 if thoughts > budget else thoughts + words
    assert (fold.usage["prompt_tokens"], fold.usage["completion_tokens"]) == (7, answer)


def test_an_answer_between_thoughts_is_not_taken_back():
    """A model that thinks again after its first words has begun to answer, and the caller has them."""
    content = said(["t"], ["w"]).replace(b"data: [DONE]", piece(reasoning_content="u") * 9 + b"data: [DONE]")
    fold, resumed = limited(content, 3)
    assert (resumed, fold.text) == ([], "w")
