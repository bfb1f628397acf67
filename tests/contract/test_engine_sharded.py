"""One model in three processes: all of them or none, one request at a time, and no rank outlives its engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from support import hybrid_model, loopback, networks
from support.engines import KEY, Engine
from support.mlxq_home import until

from tasks.engines import adapters
from tasks.engines.mlx_lm_sharded import adapter
from tasks.plan.exit_causes import explain
from tasks.supervision import probe
from tasks.system import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

END_S = 60.0
"""For a crowded machine: a rank that outlives its engine stays for good."""
ROLES = ("user", "assistant")


@pytest.fixture(scope="module")
def weights(builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model of random weights, which says the same each time; a token takes milliseconds."""
    return hybrid_model.make("thirds", tmp_path_factory.mktemp("weights") / "thirds", builtin_model)


@pytest.fixture(scope="module")
def engine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Serve the small model: in three networks where they can be made."""
    with ExitStack() as held:
        words: Sequence[str] = ()
        if not networks.refusal():
            net = held.enter_context(networks.network("a", "b", "c"))
            places = [{"address": net.address(name), "through": net.inside(name)} for name in net.names]
            words = ("--places", json.dumps(places))
        folder = tmp_path_factory.mktemp("sharded")
        made = Engine(folder, weights, adapter.installation(), concurrency=1, words=words)
        made.start()
        yield made
        made.stop(1)


def ranks(engine: Engine) -> list[psutil.Process]:
    return [
        child for child in psutil.Process(engine.identity.pid).children() if "rank_program.py" in child.cmdline()[2]
    ]


def talk(engine: Engine, *turns: str, tokens: int = 8) -> dict[str, object]:
    messages = [{"role": ROLES[at % 2], "content": text} for at, text in enumerate(turns)]
    return {"model": engine.name, "messages": messages, "max_tokens": tokens, "temperature": 0}


def alone(weights: Path, *turns: str, tokens: int) -> str:
    """Return what the model says in one process."""
    from mlx_lm import generate, load

    model, tokenizer, *_ = load(str(weights))
    messages = [{"role": ROLES[at % 2], "content": text} for at, text in enumerate(turns)]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return generate(model, tokenizer, prompt, max_tokens=tokens)


def test_three_ranks_answer_as_one_and_read_a_prompt_once(engine: Engine, weights: Path):
    first = engine.post("/v1/chat/completions", talk(engine, "What is the capital of France?", tokens=6)).json()
    said = first["choices"][0]["message"]["content"]
    more = talk(engine, "What is the capital of France?", said, "And of Italy?", tokens=1)
    second = engine.post("/v1/chat/completions", more).json()

    assert len(ranks(engine)) == 3
    assert said == alone(weights, "What is the capital of France?", tokens=6)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 2, "random words are other tokens when they are read"
    assert all(KEY not in part for rank in ranks(engine) for part in (*rank.cmdline(), *rank.environ().values()))


def test_requests_take_turns(engine: Engine):
    """Two at once end both ranks with JACCL (mlx-lm issue 1737). Three wait until the first one's client leaves."""
    story, running = talk(engine, "Tell a story.", tokens=4000) | {"stream": True}, [0]
    url = f"{engine.url}/v1/chat/completions"
    with ThreadPoolExecutor(3) as pool:
        with loopback.stream("POST", url, json=story, headers=engine.headers, timeout=120) as answer:
            lines = answer.iter_lines()  # its end would close the connection
            next(line for line in lines if "content" in line)
            asked = [pool.submit(engine.ask, f"Count to {n}.", max_tokens=4, temperature=0) for n in (5, 6, 7)]
            until(lambda: engine.status().num_waiting == len(asked))
            running.append(engine.status().num_running)
        while not all(answer.done() for answer in asked):
            running.append(engine.status().num_running)
            time.sleep(0.05)  # a look takes of the cores that answer
        answers = [answer.result() for answer in asked]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert max(running) == 1


def test_idle_ranks_wait_and_the_next_request_wakes_them_all(engine: Engine):
    """In MLX's ring a rank that waits reads its socket in a circle."""
    before = sum(sum(rank.cpu_times()[:2]) for rank in ranks(engine))
    time.sleep(3)  # that nothing is done cannot be awaited
    spent = sum(sum(rank.cpu_times()[:2]) for rank in ranks(engine)) - before

    assert spent < 0.3, "a tenth of one core, of three ranks"
    assert loopback.request("DELETE", f"{engine.url}/v1/cache", headers=engine.headers, timeout=60).status_code == 200
    assert probe.one_token(engine.port, KEY, engine.name, 120) < 120


WRONG: Sequence[dict[str, object]] = (
    *({"model": "/etc"}, {"max_tokens": "many"}, {"messages": None}),
    *({"messages": 7}, {"n": 2}, {"top_p": 9}),
)


def test_what_it_refuses_leaves_it_serving(engine: Engine):
    for wanted in WRONG:
        assert engine.post("/v1/chat/completions", talk(engine, "Hello") | wanted).status_code == 400, wanted
    assert probe.one_token(engine.port, KEY, engine.name, 120) < 120


def test_a_rank_that_dies_ends_all_and_a_new_start_serves(engine: Engine):
    """Killed in the middle of an answer: the others would wait for it without limit."""
    before = ranks(engine)
    with loopback.stream(
        "POST", f"{engine.url}/v1/chat/completions", json=talk(engine, "Tell a story.", tokens=4000) | {"stream": True},
        headers=engine.headers, timeout=120,
    ) as answer:  # fmt: skip
        next(line for line in answer.iter_lines() if "content" in line)
        before[1].send_signal(signal.SIGKILL)
        assert process.wait(engine.identity, END_S)
    cause = explain(engine.exit_code(), engine.log.read_text(), "fast", adapters.rules(engine.at.name))

    assert not cause.permanent
    assert not [rank for rank in before if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    engine.start()
    assert probe.one_token(engine.port, KEY, engine.name, 120) < 120


def test_no_rank_outlives_an_engine_that_is_killed(engine: Engine):
    before = ranks(engine)
    os.kill(engine.identity.pid, signal.SIGKILL)

    until(lambda: not any(rank.is_running() for rank in before), END_S)


def test_ranks_end_with_their_leader(engine: Engine):
    """Also those in other networks."""
    engine.start()
    before = ranks(engine)
    before[0].send_signal(signal.SIGKILL)

    assert process.wait(engine.identity, END_S)
    assert not [rank for rank in before if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
