"""One model in three processes: all of them or none, one request at a time, and no rank outlives its engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from support import loopback
from support.engines import KEY, Engine
from support.mlxq_home import until

from tasks.engines import adapters
from tasks.engines.mlx_lm_sharded import adapter
from tasks.plan.exit_causes import explain
from tasks.supervision import probe
from tasks.system import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def engine(builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("sharded"), builtin_model, adapter.installation(), concurrency=1)
    made.start()
    yield made
    made.stop(1)


def ranks(engine: Engine) -> list[psutil.Process]:
    return [
        child for child in psutil.Process(engine.identity.pid).children() if "rank_program.py" in child.cmdline()[2]
    ]


def talk(engine: Engine, *turns: str) -> dict[str, object]:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    return {"model": engine.name, "messages": messages, "max_tokens": 8, "temperature": 0}


def test_three_ranks_answer_as_one_and_read_a_prompt_once(engine: Engine):
    first = engine.post("/v1/chat/completions", talk(engine, "What is the capital of France?")).json()
    said = first["choices"][0]["message"]["content"]
    more = talk(engine, "What is the capital of France?", said, "And of Italy?")
    second = engine.post("/v1/chat/completions", more).json()

    assert len(ranks(engine)) == 3
    assert "Paris" in said
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["total_tokens"] - 2
    assert all(KEY not in part for rank in ranks(engine) for part in (*rank.cmdline(), *rank.environ().values()))


def test_requests_take_turns(engine: Engine):
    """Two at once end both ranks with JACCL (mlx-lm issue 1737)."""
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(engine.ask, f"Count to {number}.", max_tokens=4) for number in (5, 6, 7)]
        while not all(answer.done() for answer in asked):
            status = engine.status()
            seen.append((status.num_running, status.num_waiting))
        answers = [answer.result() for answer in asked]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert max(running for running, _ in seen) == 1
    assert max(waiting for _, waiting in seen) == 2


@pytest.mark.parametrize(
    "wanted", [{"model": "/etc"}, {"max_tokens": "many"}, {"messages": None}, {"messages": 7}, {"n": 2}, {"top_p": 9}]
)
def test_what_it_refuses_leaves_it_serving(engine: Engine, wanted: dict[str, object]):
    assert engine.post("/v1/chat/completions", talk(engine, "Hello") | wanted).status_code == 400
    assert probe.one_token(engine.port, KEY, engine.name, 120) < 120


def test_a_rank_that_dies_ends_all_and_a_new_start_serves(engine: Engine):
    """Killed in the middle of an answer: the others would wait for it without limit."""
    before = ranks(engine)
    with loopback.stream(
        "POST", f"{engine.url}/v1/chat/completions", json=talk(engine, "Tell a story.") | {"stream": True},
        headers=engine.headers, timeout=120,
    ) as answer:  # fmt: skip
        next(line for line in answer.iter_lines() if "content" in line)
        before[1].send_signal(signal.SIGKILL)
        assert process.wait(engine.identity, 10)
    cause = explain(engine.exit_code(), engine.log.read_text(), "fast", adapters.rules(engine.at.name))

    assert not cause.permanent
    assert not [rank for rank in before if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    engine.start()
    assert probe.one_token(engine.port, KEY, engine.name, 120) < 120


def test_no_rank_outlives_an_engine_that_is_killed(engine: Engine):
    before = ranks(engine)
    os.kill(engine.identity.pid, signal.SIGKILL)

    until(lambda: not any(rank.is_running() for rank in before), 10)
