"""The child that compares: two releases of an engine, or its tunings with one model.

The releases serve the built-in model side by side, and are asked in turn. Tunings are measured one after another, as
two copies of a model may not fit. The best of the rounds counts: what else runs on the machine can only slow one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from state.errors import EngineFailed
from tasks.engines import benchmark, reuse, timed_completion
from tasks.plan import bench, tuning
from tasks.plan.bench import TimedAnswer
from tasks.plan.tuning import AS_IT_IS, Figures
from tasks.system.child import Report, answer

ROUNDS, PROMPT_TOKENS, ANSWER_TOKENS = 5, 128, 48
TUNING_ROUNDS = 3


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return what `request` asks for, which tasks/engine.py or tasks/tuning.py has made."""
    return _tunings(request, report) if "tunings" in request else _releases(request, report)


def _releases(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return {version: {"decode_tps", "prompt_tps"}} in tokens/s. Raises EngineFailed, which names the release."""
    sides: dict[str, dict[str, Any]] = request["sides"]
    answers: dict[str, list[TimedAnswer]] = {version: [] for version in sides}
    with ExitStack() as engines:
        for version, side in sides.items():
            report({"phase": f"starting {version}"})
            engines.enter_context(_named(side))
            engines.enter_context(benchmark.own_engine(side))
            _ask(side)
        for number in range(ROUNDS):
            for version in list(sides) if number % 2 else list(reversed(sides)):
                report({"phase": f"timing {version}", "done": number, "total": ROUNDS, "unit": "rounds"})
                answers[version].append(_ask(sides[version]))
    return {version: _speed(bench.usable(timed)) for version, timed in answers.items()}


@contextmanager
def _named(side: dict[str, Any]) -> Generator[None]:
    """Name the release in the error of its engine."""
    try:
        yield
    except EngineFailed as problem:
        if "could not be timed" in problem.message:  # it is the other one's, or was named where it was asked
            raise
        raise EngineFailed(f"{side['release']} could not be timed: {problem.message}", hint=problem.hint) from problem


def _ask(side: dict[str, Any]) -> TimedAnswer:
    text = bench.prompt(PROMPT_TOKENS, uuid.uuid4().hex)
    with _named(side):
        return timed_completion.timed(side["port"], side["key"], side["name"], text, ANSWER_TOKENS)


def _speed(answers: list[TimedAnswer]) -> dict[str, float]:
    """Return the best speeds; 0 where no answer was long enough to time."""
    return {
        "decode_tps": round(max((timed.decode_tps for timed in answers), default=0.0), 2),
        "prompt_tps": round(max((timed.prompt_tps for timed in answers), default=0.0), 2),
    }


def _tunings(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return what `tuning.result` makes of it; the tuning to use is measured twice.

    Raises EngineFailed where the engine as it is fails.
    """
    measured: dict[str, Figures] = {}
    failed: dict[str, str] = {}
    for name, side in request["tunings"].items():
        try:
            measured[name] = _figures(name, side, report)
        except EngineFailed as problem:
            if name == AS_IT_IS:
                raise
            failed[name] = problem.message
    memory_bytes: int = request["memory_bytes"]
    if best := tuning.best(measured, memory_bytes):
        for name in (AS_IT_IS, best):
            measured[name] = tuning.best_of(measured[name], _figures(name, request["tunings"][name], report))
    return tuning.result(measured, failed, memory_bytes)


def _figures(name: str, side: dict[str, Any], report: Report) -> Figures:
    """Start an engine, measure it, and end it. Raises EngineFailed."""
    report({"phase": f"starting the engine {_with(name)}"})
    with benchmark.own_engine(side) as engine, benchmark.peak(side, engine.pid) as peak:
        report({"phase": f"timing the engine {_with(name)}"})
        rounds = [[_greedy(side, prompt) for prompt in tuning.PROMPTS] for _ in range(TUNING_ROUNDS)]
        total = max(_at_once(side) for _ in range(TUNING_ROUNDS))
        reused = reuse.share(side["port"], side["key"], side["name"], side["release"])
    return Figures(
        answers=tuple(timed.text for timed in rounds[0]),
        decode_tps=tuple(tuning.speed(answers) for answers in zip(*rounds, strict=True)),
        total_tps=total,
        reused=reused,
        peak_bytes=peak["bytes"],
    )


def _with(name: str) -> str:
    return name if name == AS_IT_IS else f"with {name}"


def _greedy(side: dict[str, Any], prompt: str) -> TimedAnswer:
    return timed_completion.timed(side["port"], side["key"], side["name"], prompt, side["gen_tokens"], greedy=True)


def _at_once(side: dict[str, Any]) -> float:
    """Return the tokens/s of several answers at once, all together; greedy, as a random one may end at once."""
    began = time.perf_counter()
    prompts = [tuning.PROMPTS[number % len(tuning.PROMPTS)] for number in range(side["concurrency"])]
    with ThreadPoolExecutor(side["concurrency"]) as pool:
        calls = [pool.submit(_greedy, side, prompt) for prompt in prompts]
        answers = [call.result() for call in calls]
    return sum(timed.tokens for timed in answers) / (time.perf_counter() - began)


if __name__ == "__main__":
    answer(work)
