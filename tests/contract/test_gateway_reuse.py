"""What a client learns of the part of its prompt that was not read again: every dialect, over both real engines."""

from __future__ import annotations

import json
import string
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import hybrid_model, loopback
from support.engines import KEY, Engine, installation
from support.gateway import Gateway
from support.ports import free_port

from state.db import open_database
from state.metrics import usage
from state.paths import Home
from state.stack import Tier
from tasks import smoke_test
from tasks.engines import adapters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RULES = " ".join(f"Rule {number}: always check file number {number} before you write." for number in range(30))
Turn = tuple[str, str]
"""Role and text."""


@pytest.fixture(scope="module", params=list(adapters.ENGINES))
def engine(
    request: pytest.FixtureRequest,
    shared_folder: Path,
    builtin_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("engine")
    folder = hybrid_model.make("plain", root / "plain", builtin_model)
    at = installation(request.param, shared_folder / "engines")
    engine = Engine(root / "home", folder, at, name="standard")
    engine.start()
    yield engine
    engine.stop(1)


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(
        home=tmp_path_factory.mktemp("gateway"),
        tiers=[engine.tier],
        secrets={"LITELLM_MASTER_KEY": KEY, "MLXQ_TIER_KEY": KEY},
        programs={"standard": engine.at.engine},
    )
    made.start()
    yield made
    made.stop()


def chat(turns: list[Turn], *, stream: bool) -> dict[str, Any]:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"messages": [{"role": role, "content": text} for role, text in turns], "max_tokens": 4} | options


def completions(turns: list[Turn], *, stream: bool) -> dict[str, Any]:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"prompt": "\n".join(text for _, text in turns), "max_tokens": 4} | options


def messages(turns: list[Turn], **_: bool) -> dict[str, Any]:
    said = [{"role": role, "content": text} for role, text in turns[1:]]
    return {"system": turns[0][1], "messages": said, "max_tokens": 4}


def responses(turns: list[Turn], **_: bool) -> dict[str, Any]:
    items = [{"role": role, "content": text} for role, text in turns[1:]]
    return {"instructions": turns[0][1], "input": items, "max_output_tokens": 16}


BODIES: dict[str, Callable[..., dict[str, Any]]] = {
    "chat/completions": chat,
    "completions": completions,
    "messages": messages,
    "responses": responses,
}


def asked(gateway: Gateway, path: str, turns: list[Turn], *, stream: bool, **more: Any) -> dict[str, Any]:
    """Return the last `usage` of an answer."""
    body = BODIES[path](turns, stream=stream) | {"model": "standard", "stream": stream, "temperature": 0, **more}
    answer = loopback.post(
        f"{gateway.url}/v1/{path}", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=240
    )
    assert answer.status_code == 200, answer.text
    if not stream:
        return answer.json()["usage"]
    events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    told = [event.get("usage") or (event.get("response") or {}).get("usage") for event in events]
    return [usage for usage in told if usage][-1]


def cached(path: str, told: dict[str, Any]) -> tuple[int, int]:
    """Return the tokens of the prompt, and those that were not read again, where the dialect has them."""
    match path:
        case "messages":
            return told["input_tokens"] + told["cache_read_input_tokens"], told["cache_read_input_tokens"]
        case "responses":
            return told["input_tokens"], told["input_tokens_details"]["cached_tokens"]
        case _:
            return told["prompt_tokens"], told["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", BODIES)
def test_a_second_turn_tells_what_was_not_read_again(gateway: Gateway, path: str, stream: bool):
    """Also of vllm-mlx, which does not tell: its status is read. The first turn has read everything."""
    turns: list[Turn] = [("system", f"{uuid.uuid4()} {RULES}"), ("user", "List the files.")]
    first, none = cached(path, asked(gateway, path, turns, stream=stream))
    turns += [("assistant", "There are two."), ("user", "Which is the larger one?")]
    second, reused = cached(path, asked(gateway, path, turns, stream=stream))

    assert none < 60, "the words before a prompt of its own, at most"
    assert second > first > 400
    assert 0.95 * first <= reused <= second


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "name"), [("chat/completions", "stop"), ("messages", "stop_sequences")])
def test_an_answer_that_is_cut_at_a_stop_string_tells_it_too(gateway: Gateway, path: str, name: str, stream: bool):
    """The engine never says its usage then; one of these signs is in the first words of any answer."""
    turns: list[Turn] = [("system", f"{uuid.uuid4()} {RULES}"), ("user", "List the files.")]
    first, _ = cached(path, asked(gateway, path, turns, stream=stream))
    turns += [("assistant", "There are two."), ("user", "Which is the larger one?")]
    told = asked(gateway, path, turns, stream=stream, **{name: [*string.ascii_letters, " "]})
    second, reused = cached(path, told)

    assert (told.get("completion_tokens") or told["output_tokens"]) < 4, "it was cut"
    assert second > first
    assert 0.95 * first <= reused <= second


def test_requests_side_by_side_are_told_apart(gateway: Gateway):
    """Two grow by a turn at once, and one is new; no one gets what is another's."""
    from concurrent.futures import ThreadPoolExecutor

    old = [[("system", f"{uuid.uuid4()} {RULES} " + "more " * 40 * number), ("user", "Begin.")] for number in (1, 2)]
    lengths = [cached("chat/completions", asked(gateway, "chat/completions", turns, stream=True))[0] for turns in old]
    talks = [*([*turns, ("assistant", "Yes."), ("user", "Go on.")] for turns in old), [("user", f"{uuid.uuid4()} new")]]
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda turns: asked(gateway, "chat/completions", turns, stream=True), talks))
    found = [cached("chat/completions", usage)[1] for usage in told]

    for length, reused in zip(lengths, found, strict=False):
        assert reused == 0 or 0.95 * length <= reused <= length + 20
    assert found[2] < 60


def test_the_sums_hold_what_was_not_read_again(gateway: Gateway, tmp_path: Path):
    """They are written at the gateway's end."""
    gateway.stop()
    db = open_database(Home(gateway.home))
    (row,) = usage.totals(db, "tier")
    db.close()
    gateway.start()

    assert 0.3 * row["prompt_tokens"] < row["cached_tokens"] < row["prompt_tokens"]


def test_the_smoke_test_finds_that_little_is_read_again(gateway: Gateway, engine: Engine):
    share = smoke_test.second_turn(gateway.port, KEY, Tier("standard", engine.tier))

    assert share is not None
    assert share >= 0.95


def test_a_second_turn_that_no_one_answers_says_nothing(engine: Engine):
    assert smoke_test.second_turn(free_port(), KEY, Tier("standard", engine.tier)) is None
