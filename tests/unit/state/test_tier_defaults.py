"""The defaults of requests that a user sets for single tiers."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from state import settings, stack
from state.errors import UsageProblem
from state.paths import Home
from state.stack import Defaults, Engine, Tier

MAIN = Engine("standard", "m", "int4", "hub:a/b", 8000, 65_536, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", {}),
        ("fast.temperature=0.2, fast.max-tokens=1024", {"fast.temperature": 0.2, "fast.max-tokens": 1024}),
        ("my-own.top-p=1,fast.top-k=20", {"my-own.top-p": 1.0, "fast.top-k": 20}),
        ("fast.thinking=off,standard.thinking-budget=2000", {"fast.thinking": False, "standard.thinking-budget": 2000}),
        ({"fast.temperature": 0, "fast.thinking": True}, {"fast.temperature": 0.0, "fast.thinking": True}),
    ],
)
def test_what_is_written_is_read(home: Home, text: Any, chosen: dict[str, Any]) -> None:
    settings.write(home, "tier-defaults", text)
    assert settings.load(home)["tier-defaults"] == chosen


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("temperature=0.2", "pairs of a tier with one of temperature"),
        ("fast.heat=1", "pairs of a tier with one of temperature"),
        ("fast.temperature=", "fast.temperature from 0 to 2"),
        ("fast.temperature=3", "fast.temperature from 0 to 2"),
        ("fast.temperature=nan", "fast.temperature from 0 to 2"),
        ("fast.top-p=0", "fast.top-p from above 0"),
        ("fast.top-k=2.5", "fast.top-k from 1 to 1000"),
        ("fast.max-tokens=20000", "fast.max-tokens from 1 to 16384"),
        ("fast.thinking=maybe", "fast.thinking from true or false"),
        ({"fast.top-k": True}, "fast.top-k from 1 to 1000"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(home: Home, text: Any, allowed: str) -> None:
    with pytest.raises(UsageProblem, match=allowed):
        settings.write(home, "tier-defaults", text)


def test_each_is_a_field_of_a_tiers_defaults() -> None:
    assert {name.replace("-", "_") for name in settings.TIER_DEFAULTS} == {field.name for field in fields(Defaults)}


def test_they_come_over_those_of_the_stack_and_for_their_tier_alone() -> None:
    tiers = [Tier("standard", MAIN), Tier("fast", MAIN, Defaults(temperature=0.7, thinking=False))]
    chosen = settings.check(settings.find("tier-defaults"), "fast.temperature=0.2,fast.top-k=20,gone.top-k=1")
    assert stack.with_defaults(tiers, {"tier-defaults": chosen, "thinking-budget": 4096}) == [
        Tier("standard", MAIN),
        Tier("fast", MAIN, Defaults(temperature=0.2, top_k=20, thinking=False)),
    ]


def test_fast_answers_at_once_and_the_others_think_within_a_budget_unless_set() -> None:
    thinker = replace(MAIN, reasoning_parser="qwen3")
    tiers = [Tier(name, thinker) for name in ("standard", "fast", "longctx")]

    def chosen(own: dict[str, Any]) -> list[tuple[bool | None, int | None]]:
        values = {"tier-defaults": own, "thinking-budget": 3000}
        defaults = [tier.defaults for tier in stack.with_defaults(tiers, values)]
        return [(default.thinking, default.thinking_budget) for default in defaults]

    assert chosen({}) == [(True, 3000), (False, None), (True, 3000)]
    own = {"fast.thinking": True, "standard.thinking-budget": 9, "longctx.thinking": False}
    assert chosen(own) == [(True, 9), (True, 3000), (False, None)]
