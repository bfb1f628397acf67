"""What a benchmark asks, how its answers are read, and what it refuses."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import scene
from support.clock import Clock

from mlxq import cli
from mlxq.commands.bench import plot
from state import facts, ledger, stack
from state.db import Database
from state.errors import EngineFailed
from state.metrics import bench as rows
from state.paths import Home
from tasks import bench as task
from tasks import kinds
from tasks.engines import timed_completion
from tasks.plan import bench
from tasks.plan.bench import TimedAnswer
from tasks.system.child import Later

ONE = scene.BENCH


def test_no_two_prompts_begin_alike() -> None:
    first, second = bench.prompt(1024, "one"), bench.prompt(1024, "two")

    assert first.split()[0] != second.split()[0]
    assert first.split()[1:20] != second.split()[1:20]
    assert 900 < len(first.split()) < 1100


def test_speeds_leave_the_first_token_to_the_prompt() -> None:
    answer = TimedAnswer(ttft_s=2.0, streaming_s=1.0, prompt_tokens=1000, tokens=51)

    assert (answer.prompt_tps, answer.decode_tps) == (500.0, 50.0)


def test_a_round_gives_medians_and_the_spread() -> None:
    answers = [TimedAnswer(1.0, seconds, 1000, 11) for seconds in (0.1, 0.2, 0.5)]

    found = bench.summarize(1, answers, [1.1, 1.2, 1.5])

    assert (found.decode_low, found.decode_tps, found.decode_high) == (20.0, 50.0, 100.0)
    assert found.total_tps == pytest.approx(33 / 3.8)


def test_answers_that_ended_at_once_are_not_measured() -> None:
    assert bench.usable([TimedAnswer(1, 0.0, 10, 1), TimedAnswer(1, 1.0, 10, 7), TimedAnswer(1, 1.0, 10, 8)]) == [
        TimedAnswer(1, 1.0, 10, 8)
    ]


@pytest.mark.parametrize(
    ("decode", "prompt", "verdict"),
    [(100, 100, "PASS"), (86, 100, "PASS"), (85, 100, "WARN"), (100, 71, "WARN"), (70, 100, "FAIL"), (200, 1, "FAIL")],
)
def test_the_worse_of_both_speeds_is_the_verdict(decode: float, prompt: float, verdict: str) -> None:
    assert bench.verdict(decode, prompt, 100, 100) == verdict


def test_a_regression_names_what_was_upgraded() -> None:
    story = [
        ONE,
        replace(ONE, decode_tps=48.0),
        replace(ONE, decode_tps=38.0, engine="vllm-mlx 0.7.0"),
        replace(ONE, decode_tps=20.0, concurrency=4),
        replace(ONE, decode_tps=20.0, prompt_tokens=ONE.prompt_tokens + 4096),
        replace(ONE, decode_tps=37.0, engine="vllm-mlx 0.7.0"),
    ]

    assert bench.regressions(story) == {2: "21% slower since vllm-mlx 0.6.0 -> 0.7.0"}


def test_the_plot_has_a_bar_each_and_flags_what_got_slower() -> None:
    lines = plot([replace(ONE, decode_tps=50.0), replace(ONE, decode_tps=25.0)], {1: "50% slower"})

    assert [line.count("█") for line in lines] == [20, 10, 0]
    assert lines[2] == "  ! 50% slower"
    assert max(map(len, lines)) <= 80


class Engine(http.server.BaseHTTPRequestHandler):
    """Streams what a test says, with a pause before each event."""

    events: list[object]
    status = 200
    port: int

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(type(self).status)
        self.end_headers()
        for event in type(self).events:
            time.sleep(0.05)
            self.wfile.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def engine() -> Iterator[type[Engine]]:
    Engine.status = 200
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    Engine.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Engine
    server.shutdown()
    server.server_close()
    thread.join()


def says(**delta: str) -> dict[str, object]:
    return {"choices": [{"delta": delta}]}


def test_thoughts_count_as_tokens_and_empty_events_do_not(engine: type[Engine]) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    engine.events = [says(role="assistant"), says(reasoning_content="Hm"), says(content="a"), usage, "[DONE]"]

    answer = timed_completion.timed(engine.port, "key", "m", "hello", 8)

    assert (answer.prompt_tokens, answer.tokens) == (7, 3)
    assert answer.ttft_s >= 0.1
    assert answer.streaming_s > 0
    assert answer.ttft_s + answer.streaming_s >= 0.15


@pytest.mark.parametrize(
    ("status", "events", "words"),
    [
        (500, ["boom"], "HTTP 500"),
        (200, [{"error": {"message": "out of memory"}}], "out of memory"),
        (200, ["[DONE]"], "without a token"),
    ],
)
def test_an_engine_that_fails_is_not_measured(
    engine: type[Engine], status: int, events: list[object], words: str
) -> None:
    engine.status, engine.events = status, events

    with pytest.raises(EngineFailed, match=words):
        timed_completion.timed(engine.port, "key", "m", "hello", 8)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "Name a TARGET to benchmark, or pass --history MODEL"),
        (["fast", "--history", "fast"], 2, "Name a TARGET"),
        (["fast", "--concurrency", "0"], 2, "numbers from 1 to 64"),
        (["fast", "--concurrency", "1,,4"], 2, "such as 1,4"),
        (["fast", "--runs", "0"], 2, "--runs"),
        (["qwen3-8b"], 1, "No weights of qwen3-8b are here"),
        (["no-such-model"], 1, "No weights of no-such-model are here"),
        (["--history", "qwen3-8b"], 1, "There are no saved benchmarks of qwen3-8b"),
        (["--history", "qwen3-8bb"], 1, "nearest are: qwen3-8b"),
    ],
)
def test_what_cannot_be_measured_is_said(
    db: Database, argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", *argv]) == code

    assert words in capsys.readouterr().err


def test_the_history_of_a_tier_is_that_of_its_model(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    facts.put(db, "machine", {"chip": "M4 Pro"})
    stack.replace(db, [stack.Engine("fast", "qwen3-8b", "int4", "hub:x/y", 9141, 512, 1, 1, 1)])
    rows.save(db, ONE)

    assert cli.run(["bench", "--history", "fast", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert [each["decode_tps"] for each in told["benches"]] == [50.0]


def test_the_history_of_weights_put_there_by_hand_is_found_by_their_name(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home.models / "mine"
    folder.mkdir(parents=True)
    facts.put(db, "machine", {"chip": "M4 Pro"})
    rows.save(db, replace(ONE, model=f"file:{folder}"))

    assert cli.run(["bench", "--history", "mine"]) == 0

    assert "50 tok/s" in capsys.readouterr().out


class Asking:
    """As much of a job's context as the wait for quiet reads."""

    def __init__(self, db: Database, claim: object) -> None:
        self.db, self.claim = db, claim


def test_a_benchmark_waits_for_jobs_that_it_would_measure_too(home: Home, db: Database) -> None:
    pull = ledger.enqueue(db, kinds.new("pull", {"source": "hub:a/b"}))[0]
    mine = ledger.enqueue(db, kinds.new("bench", {"target": "fast"}))[0]
    for kind in ("pull", "bench"):
        claim = ledger.claim(db, "heavy", {kind}, "a/1/1")
    assert claim
    assert claim.id == mine

    with pytest.raises(Later, match=rf"job {pull} \(pull\) is at work"):
        task.wait_for_quiet(Asking(db, claim), db.now())  # pyright: ignore[reportArgumentType] (it reads these two alone)


def test_of_two_benchmarks_the_older_one_goes_first(home: Home, db: Database) -> None:
    for target in ("fast", "standard"):
        ledger.enqueue(db, kinds.new("bench", {"target": target}))
    older, younger = (ledger.claim(db, "heavy", {"bench"}, "a/1/1") for _ in range(2))
    assert older
    assert younger

    task.wait_for_quiet(Asking(db, older), db.now())  # pyright: ignore[reportArgumentType]
    with pytest.raises(Later):
        task.wait_for_quiet(Asking(db, younger), db.now())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("ran_s", "disturbed"), [((-9, -5), False), ((-5, 5), True), ((3, 6), True)])
def test_a_job_that_came_and_went_meanwhile_was_measured_too(
    home: Home, db: Database, clock: Clock, ran_s: tuple[float, float], disturbed: bool
) -> None:
    began = clock.now
    ledger.enqueue(db, kinds.new("bench", {"target": "fast"}))
    mine = ledger.claim(db, "heavy", {"bench"}, "a/1/1")
    clock.now = began + ran_s[0]
    ledger.enqueue(db, kinds.new("restart", {"service": "standard"}))
    other = ledger.claim(db, "ops", {"restart"}, "a/1/1")
    clock.now = began + ran_s[1]
    assert other
    ledger.succeed(db, other, None)
    clock.now = began + 10

    with pytest.raises(Later) if disturbed else contextlib.nullcontext():
        task.wait_for_quiet(Asking(db, mine), began)  # pyright: ignore[reportArgumentType]
