"""The child that compares two releases: both serve the built-in model, and are asked in turn.

The best of the rounds counts: what else runs on the machine can only slow one.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from typing import Any

from tasks.engines import benchmark, timed_completion
from tasks.plan import bench
from tasks.plan.bench import TimedAnswer
from tasks.system.child import Report, answer

ROUNDS, PROMPT_TOKENS, ANSWER_TOKENS = 5, 128, 48


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return {version: {"decode_tps", "prompt_tps"}} in tokens/s; `request` is made by tasks/engine.py."""
    sides: dict[str, dict[str, Any]] = request["sides"]
    answers: dict[str, list[TimedAnswer]] = {version: [] for version in sides}
    with ExitStack() as engines:
        for version, side in sides.items():
            report({"phase": f"starting {version}"})
            engines.enter_context(benchmark.own_engine(side))
            _ask(side)
        for number in range(ROUNDS):
            for version in list(sides) if number % 2 else list(reversed(sides)):
                report({"phase": f"timing {version}", "done": number, "total": ROUNDS, "unit": "rounds"})
                answers[version].append(_ask(sides[version]))
    return {version: _speed(bench.usable(timed)) for version, timed in answers.items()}


def _ask(side: dict[str, Any]) -> TimedAnswer:
    text = bench.prompt(PROMPT_TOKENS, uuid.uuid4().hex)
    return timed_completion.timed(side["port"], side["key"], side["name"], text, ANSWER_TOKENS)


def _speed(answers: list[TimedAnswer]) -> dict[str, float]:
    """Return the best speeds; 0 where no answer was long enough to time."""
    return {
        "decode_tps": round(max((timed.decode_tps for timed in answers), default=0.0), 2),
        "prompt_tps": round(max((timed.prompt_tps for timed in answers), default=0.0), 2),
    }


if __name__ == "__main__":
    answer(work)
