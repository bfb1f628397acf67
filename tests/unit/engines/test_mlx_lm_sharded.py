"""What a split model's door passes on and refuses, how it tells a stream, and what its ranks may send each other."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from state import settings
from tasks.engines.mlx_lm_sharded import rank_program
from tasks.engines.mlx_lm_sharded.answers import NotServed, asked, folded, is_usage, told

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "longctx", "messages": [{"role": "user", "content": "Hi"}]}


def test_only_known_fields_are_passed_on_and_always_for_a_stream():
    body = BODY | {
        "seed": 1,
        "adapters": "/etc",
        "draft_model": "x",
        "temperature": 0.5,
        "top_p": None,
        "logprobs": True,
    }
    wanted = asked(CHAT, body, "longctx", 100)

    assert wanted.body == {
        "messages": BODY["messages"], "temperature": 0.5, "model": "default_model", "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert not wanted.streams
    assert asked(CHAT, BODY | {"stream": True, "stream_options": {"include_usage": True}}, "longctx", 9).wants_usage


@pytest.mark.parametrize(
    "body", [[], "text", None, BODY | {"model": "/etc"}, BODY | {"max_tokens": 101}, BODY | {"max_tokens": 0},
             BODY | {"max_completion_tokens": "9"}, BODY | {"n": 2}],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(body: Any):
    with pytest.raises(NotServed):
        asked(CHAT, body, "longctx", 100)


def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "finish_reason": finish, "delta": {"role": "assistant", **delta}}]
    return {"id": "1", "object": "chat.completion.chunk", "model": "default_model", "choices": choices, **more}


def test_a_stream_folds_into_one_answer():
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    usage = event({}) | {"choices": [], "usage": {"completion_tokens": 3}}
    events = [event({"reasoning": "so"}), event({"content": "Good"}), event({"content": "bye"}),
              event({"tool_calls": [call]}, "tool_calls"), usage]  # fmt: skip
    answer = folded([told(each, "longctx") for each in events])
    choice = answer["choices"][0]

    assert is_usage(usage)
    assert (answer["model"], answer["object"], answer["usage"]) == ("longctx", "chat.completion", usage["usage"])
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Goodbye"
    assert choice["message"]["reasoning_content"] == "so"
    assert choice["message"]["tool_calls"] == [{name: value for name, value in call.items() if name != "index"}]


def test_a_text_completion_folds_too():
    events = [{"object": "text_completion", "choices": [{"index": 0, "finish_reason": end, "text": text}]}
              for text, end in (("a", None), ("b", "length"))]  # fmt: skip

    assert folded([told(each, "fast") for each in events])["choices"] == [
        {"index": 0, "finish_reason": "length", "text": "ab"}
    ]


def test_a_rank_reads_no_pickle_that_names_a_function():
    assert rank_program.loads(pickle.dumps({"uids": [1, 2]})) == {"uids": [1, 2]}
    with pytest.raises(pickle.UnpicklingError):
        rank_program.loads(pickle.dumps(Path("/")))
    with pytest.raises(pickle.UnpicklingError):
        rank_program.loads(b"cos\nsystem\n(S'true'\ntR.")


@pytest.mark.parametrize("files", [[], ["model-00001-of-00002.safetensors"]])
def test_a_rank_does_not_start_with_weights_missing(tmp_path: Path, files: list[str]):
    for name in files:
        (tmp_path / name).touch()
        index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
        (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FileNotFoundError):
        rank_program.require_weights(tmp_path)


def test_the_setting_takes_tiers_and_counts():
    parse = settings.BY_NAME["tier-ranks"].parse

    assert parse("longctx=3") == {"longctx": 3} == parse({"longctx": 3})
    for bad in ("longctx=1", "longctx=17", "longctx", "=3", "longctx=x"):
        with pytest.raises(ValueError, match="pairs"):
            parse(bad)
