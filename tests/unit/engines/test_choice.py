import dataclasses

import pytest

from catalog.engines import ModelKind
from state.errors import NotSetUp
from tasks.engines.base import Installation
from tasks.engines.choice import Question, choose

OWN = Installation("vllm-mlx", "0.6.0", "/own/python")
RAPID = Installation("rapid-mlx", "0.16.10", "/rapid/python")
HYBRID = Question("auto", ModelKind.HYBRID_VISION, "metal", "qwen3_xml", "qwen3", {})


def test_auto_takes_the_engine_that_reads_a_prompt_once():
    chosen = choose(HYBRID, [OWN, RAPID])

    assert chosen.installation == RAPID
    assert (chosen.reason, chosen.rereads) == ("it reads a prompt once", False)


def test_reuse_is_worth_more_than_speed():
    fast = dataclasses.replace(HYBRID, speeds={"vllm-mlx": 90.0, "rapid-mlx": 60.0})

    assert choose(fast, [OWN, RAPID]).installation == RAPID


def test_without_another_engine_all_is_as_ever_and_said():
    chosen = choose(HYBRID, [OWN])

    assert chosen.installation == OWN
    assert chosen.rereads


def test_where_both_reuse_the_faster_one_that_was_measured_here_serves():
    plain = dataclasses.replace(HYBRID, kind=ModelKind.ATTENTION, speeds={"vllm-mlx": 90.0, "rapid-mlx": 60.0})
    half = dataclasses.replace(plain, speeds={"vllm-mlx": 90.0})

    assert choose(plain, [OWN, RAPID]).installation == OWN
    assert choose(half, [OWN, RAPID]).installation == RAPID, "one figure is no comparison"


def test_an_engine_without_the_models_parser_is_not_taken():
    assert choose(dataclasses.replace(HYBRID, tool_parser="step3p5"), [OWN, RAPID]).installation == OWN


def test_a_named_engine_is_taken_or_missed():
    named = dataclasses.replace(HYBRID, wanted="vllm-mlx")
    gone = dataclasses.replace(HYBRID, wanted="rapid-mlx")

    assert choose(named, [OWN, RAPID]).installation == OWN
    with pytest.raises(NotSetUp, match="rapid-mlx is not installed"):
        choose(gone, [OWN])
