import dataclasses

from catalog.engines import ModelKind
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
    gone = dataclasses.replace(HYBRID, wanted="rapid-mlx", absent={"rapid-mlx": "it is not installed"})

    assert choose(named, [OWN, RAPID]).installation == OWN
    assert choose(named, [OWN, RAPID]).missed == "", "what the user names is not missed"
    assert choose(gone, [OWN]).installation == OWN
    assert choose(gone, [OWN]).missed == "A setting names rapid-mlx, but it is not installed."
    assert choose(gone, [OWN]).hint == "mlxq engine install rapid-mlx"


def test_an_engine_that_vanished_is_named_in_the_reason():
    plain = dataclasses.replace(HYBRID, kind=ModelKind.ATTENTION, absent={"rapid-mlx": "its environment is gone"})
    never = dataclasses.replace(plain, absent={"rapid-mlx": "it is not installed"})

    assert choose(plain, [OWN]).reason == "no other engine here reads this model; rapid-mlx: its environment is gone"
    assert choose(never, [OWN]).reason == "no other engine here reads this model"


def test_an_engine_that_would_read_prompts_once_is_missed():
    missing = dataclasses.replace(HYBRID, absent={"rapid-mlx": "it is not installed"})
    chosen = choose(missing, [OWN])

    assert chosen.missed.startswith("It reads every prompt again from its beginning. rapid-mlx would read it once, but")
    assert choose(dataclasses.replace(missing, kind=ModelKind.ATTENTION), [OWN]).missed == ""
    assert choose(dataclasses.replace(missing, tool_parser="step3p5"), [OWN]).missed == ""


def test_a_release_that_fails_with_the_model_is_not_taken():
    faults = {"rapid-mlx 0.16.10": "it could not start"}
    chosen = choose(dataclasses.replace(HYBRID, faults=faults), [OWN, RAPID])

    assert chosen.installation == OWN
    assert "but it does not serve this model (it could not start)" in chosen.missed
    assert chosen.hint == "mlxq engine use rapid-mlx"
    assert choose(dataclasses.replace(HYBRID, faults=faults | {"vllm-mlx 0.6.0": "nor this"}), [OWN, RAPID])
    named = dataclasses.replace(HYBRID, wanted="rapid-mlx", faults=faults)
    assert choose(named, [OWN, RAPID]).installation == OWN
