"""What a tuning has to prove before it is used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.plan import tuning
from tasks.plan.bench import TimedAnswer
from tasks.plan.tuning import AS_IT_IS, Figures

MEMORY = 4_000_000_000
BEFORE = Figures(answers=("a story", "a file"), decode_tps=(50.0, 50.0), total_tps=150.0, reused=0.99, peak_bytes=10**9)
FASTER = replace(BEFORE, decode_tps=(55.0, 75.0))


def test_the_gain_is_that_of_as_many_tokens_of_each_prompt() -> None:
    assert tuning.gain(BEFORE, replace(BEFORE, decode_tps=(50.0, 100.0))) == pytest.approx(4 / 3)
    assert tuning.gain(replace(BEFORE, decode_tps=(0.0, 50.0)), FASTER) == 1.5, "one ended too early to be timed"
    assert tuning.gain(replace(BEFORE, decode_tps=(0.0, 0.0)), FASTER) == 0


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (FASTER, None),
        (replace(FASTER, decode_tps=(54.0, 56.0)), "is 1.10 times as fast"),
        (replace(FASTER, decode_tps=(44.0, 150.0)), "is 1.36 times as fast on the whole, and 0.88 times with"),
        (replace(FASTER, answers=("a story", "another file")), "gives other greedy answers"),
        (replace(FASTER, total_tps=134.0), "makes several answers at once slower"),
        (replace(FASTER, reused=0.5), "reads 49% more of an earlier turn again"),
        (replace(FASTER, peak_bytes=MEMORY + 1), "takes more memory"),
    ],
)
def test_what_speaks_against_a_tuning(after: Figures, why: str | None) -> None:
    objection = tuning.objection(BEFORE, after, MEMORY)

    assert objection is None if why is None else (objection or "").startswith(why)


def test_an_engine_that_does_not_repeat_itself_cannot_be_tuned() -> None:
    unsteady = tuning.best_of(BEFORE, replace(BEFORE, answers=("a story", "other words")))

    assert "does not repeat" in (tuning.objection(unsteady, replace(FASTER, answers=()), MEMORY) or "")


def test_the_fastest_of_those_that_nothing_speaks_against_is_used() -> None:
    fastest = replace(BEFORE, decode_tps=(90.0, 90.0))
    wrong = replace(fastest, decode_tps=(200.0, 200.0), answers=("nonsense", "nonsense"))
    measured = {AS_IT_IS: BEFORE, "prompt-lookup": FASTER, "draft-heads": fastest, "kv-int4": wrong}

    assert tuning.best(measured, MEMORY) == "draft-heads"
    assert tuning.best({AS_IT_IS: BEFORE, "kv-int4": wrong}, MEMORY) is None
    result = tuning.result(measured, {"kv-int8": "It ended."}, MEMORY)
    assert [row["tuning"] for row in result["tried"]] == [*measured, "kv-int8"]
    assert result["tried"][-1]["objection"] == "does not serve: It ended."


def test_only_answers_that_are_long_enough_have_a_speed() -> None:
    assert tuning.speed([TimedAnswer(1, 1.0, 10, 21), TimedAnswer(1, 1.0, 10, 41)]) == 40
    assert tuning.speed([TimedAnswer(1, 1.0, 10, 3)]) == 0
