"""The list of models: what a key may ask for, and the limits that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from state.keys import Key
from state.paths import Home
from tasks.gateway import models, routes
from tasks.gateway.on_demand import ModelStates, OnDemand, SleepingModel

ENGINES = {"standard": {"port": 1, "context": 65_536}, "longctx": {"port": 2, "context": 8192}}
TIERS = {"standard": {"engine": "standard"}, "fast": {"engine": "standard"}, "longctx": {"engine": "longctx"}}
NAMES = {"gpt-4o": "standard", "gpt-4o-mini": "fast", "claude-*": "standard"}
TABLE = routes.read({"engines": ENGINES, "tiers": TIERS, "names": NAMES}, "cpu")

NONE = OnDemand(Home(Path("/nowhere")), TABLE, "cpu", lambda _: None)
"""There are no models on demand."""


def key(*tiers: str) -> Key:
    return Key("app", "digest", 0.0, tiers=tiers)


def listed(which: Key, name: str = "", *, anthropic: bool = False) -> dict[str, dict[str, Any]]:
    shown = models.listing(TABLE, NONE, which, name, anthropic=anthropic) or {"data": []}
    return {model["id"]: model for model in shown.get("data", [shown])}


@pytest.mark.parametrize("anthropic", [False, True])
def test_a_key_sees_its_tiers_and_not_those_that_share_their_engine(anthropic: bool):
    assert listed(key("standard"), anthropic=anthropic).keys() == {"standard", "gpt-4o"}
    assert listed(key("fast"), anthropic=anthropic).keys() == {"fast", "gpt-4o-mini"}
    assert models.names(TABLE, NONE, key("standard")) == ["gpt-4o", "standard"]
    assert listed(key()).keys() == {*TIERS, "gpt-4o", "gpt-4o-mini"}


@pytest.mark.parametrize(("name", "seen"), [("standard", True), ("claude-x", True), ("fast", False), ("nope", False)])
def test_one_model_is_shown_to_a_key_that_may_ask_for_it(name: str, seen: bool):
    assert (name in listed(key("standard"), name)) is seen


def test_models_on_disk_are_listed_by_each_name_with_their_state():
    here = OnDemand(Home(Path("/nowhere")), TABLE, "cpu", lambda _: None)
    chat = SleepingModel("qwen", ("qwen", "org/Qwen"), "qwen.int4", "chat", 4096, vision=True)
    vectors = SleepingModel("bge", ("bge",), "bge.fp16", "embedding", 512)
    here.known = ModelStates(
        models={"qwen": chat, "org/qwen": chat, "bge": vectors},
        tiers={"small": "fast"},
        shown=("qwen", "org/Qwen", "bge", "small"),
        states={"qwen.int4": "sleeping", "bge.fp16": "serving"},
    )
    shown = models.listing(TABLE, here, key()) or {}
    states = {model["id"]: model["state"] for model in shown["data"]}
    sees = {model["id"]: model["capabilities"]["vision"] for model in shown["data"] if "capabilities" in model}
    assert (sees["org/Qwen"], sees["small"]) == (True, False), "also before its first start"
    assert {name: states[name] for name in here.known.shown} == {
        **dict.fromkeys(("qwen", "org/Qwen"), "sleeping"),
        **dict.fromkeys(("bge", "small"), "serving"),
    }
    assert models.names(TABLE, here, key("qwen")) == ["qwen", "org/Qwen"]
    assert (models.listing(TABLE, here, key(), "ORG/qwen") or {})["id"] == "ORG/qwen"
    assert models.listing(TABLE, here, key("fast"), "qwen") is None


def test_the_limits_are_those_that_engines_keep():
    """An engine takes no limit of an answer above 16,384 tokens, nor one above its context."""
    shown = listed(key())
    assert [(shown[name]["context_length"], shown[name]["max_output_tokens"]) for name in ("standard", "longctx")] == [
        (65_536, 16_384),
        (8192, 8192),
    ]
    assert listed(key(), anthropic=True)["fast"]["max_tokens"] == 16_384
