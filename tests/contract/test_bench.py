"""A benchmark against the real vllm-mlx: figures come out, and no engine is left, however it ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from support import strangers, tiny_model
from support.here import Run, runner

from state import facts, ledger, weights
from state.db import Database
from state.job import JobState
from state.metrics import bench as rows
from state.paths import Home
from tasks import bench, kinds, runtime
from tasks.system import hardware, ports

QUICK = {"prompt_tokens": 64, "gen_tokens": 24, "runs": 2}


@pytest.fixture
def model(home: Home) -> Path:
    return tiny_model.make(home.models / "tiny")


@pytest.fixture
def run(db: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Put a benchmark in, run it here as the worker would, and give its row as it is then."""
    facts.put(db, "machine", {"memory_bytes": 2**34, **hardware.machine(RECORDED).as_row()})

    ours = runner(db, home, {"bench": bench.bench}, monkeypatch)
    return lambda target, **args: ours("bench", target=target, **args)


RECORDED = {hardware.MEMINFO: "MemTotal: 16000000 kB\n", hardware.LSCPU: "Model name: A\nCPU(s): 2\n"}


def engines(home: Home) -> list[int]:
    """Give the pids of engines that run for this home."""
    found: list[int] = []
    for each in psutil.process_iter():
        try:
            if each.environ().get("MLXQ_HOME") == str(home.root) and any(
                word.endswith("vllm_mlx_program.py") for word in each.cmdline()
            ):
                found.append(each.pid)
        except psutil.Error:
            continue
    return found


def test_a_model_is_measured_on_an_engine_of_its_own(run: Run, model: Path, home: Home, db: Database) -> None:
    ended = run(str(model), **QUICK, concurrency=[1, 2], save=True)

    assert ended.state is JobState.SUCCEEDED, ended.error
    one, two = ended.result["rounds"]
    assert (one["concurrency"], two["concurrency"]) == (1, 2)
    assert 0 < one["decode_low"] <= one["decode_tps"] <= one["decode_high"]
    assert one["prompt_tps"] > 0
    assert 40 < one["prompt_tokens"] < 1200
    assert ended.result["peak_bytes"] > 50_000_000
    assert ended.result["verdict"] in {"PASS", "WARN", "FAIL"}  # held against what its files let expect
    assert ended.result["tools"] is None
    assert [row.concurrency for row in rows.history(db, f"file:{model}", "A")] == [1, 2]
    assert engines(home) == []


@pytest.mark.parametrize("listens", [True, False], ids=["who listens", "who does not listen"])
def test_an_engine_moves_from_a_port_that_another_program_has(
    run: Run, model: Path, home: Home, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    """Nothing holds a port from when it was free until the engine binds it. The other program is sent no key."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        if listens:
            stranger.listen()
        monkeypatch.setattr(ports, "spare", lambda: stranger.getsockname()[1])
        ended = run(str(model), **QUICK | {"runs": 1})
        heard = strangers.heard(stranger) if listens else []

    assert ended.state is JobState.SUCCEEDED, ended.error
    assert not any(heard)
    assert engines(home) == []


CALL = '{"name":"get_weather","arguments":{"city":"Paris"}}'


@pytest.mark.parametrize(
    ("says", "well"),
    [
        (["<tool_call>", CALL, "</tool_call>"], True),
        (["<tool_call>", CALL.removesuffix("}}"), "</tool_call>"], False),
        (["[get_weather(city='Paris')]"], False),
    ],
    ids=["well", "torn", "in the words of another model"],
)
def test_whether_a_model_calls_tools_is_seen(run: Run, home: Home, says: list[str], well: bool) -> None:
    """A real engine with the parser that the catalog names, over a model that writes exactly this.

    What the benchmark makes of a parsed call is a matter of tests/unit/engines/test_benchmark.py.
    """
    folder = tiny_model.make_caller(home.models / "caller", says)
    entry = {
        "id": "caller", "family": "Tests", "total_params_b": 0.1, "layers": 2, "hidden_size": 64, "context": 4096,
        "attention": {"full": 2, "kv_heads": 2, "head_dim": 16}, "tool_parser": "hermes",
        "quants": {"bf16": {"source": f"file:{folder}", "bytes": 10**6}},
    }  # fmt: skip
    home.catalog.mkdir()
    (home.catalog / "caller.yaml").write_text(json.dumps(entry))

    ended = run(str(folder), **QUICK | {"runs": 1})

    assert ended.state is JobState.SUCCEEDED, ended.error
    assert ended.result["tools"] is well


def test_an_engine_that_cannot_load_is_told_and_gone(run: Run, model: Path, home: Home) -> None:
    config = model / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 65'))

    ended = run(str(model), **QUICK)

    assert ended.state is JobState.FAILED
    assert ended.error_code == "engine_failed"
    assert engines(home) == []


def test_a_cancelled_benchmark_leaves_no_engine(run: Run, model: Path, home: Home, db: Database) -> None:
    def cancel() -> None:
        while not engines(home):
            time.sleep(0.05)
        other = runtime.open_database(home)
        ledger.cancel(other, 1)
        other.close()

    thread = threading.Thread(target=cancel)
    thread.start()
    ended = run(str(model), **QUICK | {"runs": 20})
    thread.join()

    assert ended.state is JobState.CANCELLED
    assert engines(home) == []
    assert weights.listing(db) == []


def test_a_benchmark_gives_way_to_a_job_that_begins_meanwhile(run: Run, model: Path, home: Home, db: Database) -> None:
    """It is no failure: the benchmark starts over when that job has ended."""

    def begin() -> None:
        while not engines(home):
            time.sleep(0.05)
        other = runtime.open_database(home)
        ledger.enqueue(other, kinds.new("pull", {"source": "hub:a/b"}))
        ledger.claim(other, "heavy", {"pull"}, "the worker")
        other.close()

    thread = threading.Thread(target=begin)
    thread.start()
    ended = run(str(model), **QUICK | {"runs": 20})
    thread.join()

    assert (ended.state, ended.failures, ended.phase) == (JobState.QUEUED, 0, "job 2 (pull) is at work")
    assert engines(home) == []


def test_what_has_no_room_is_refused_before_an_engine_starts(run: Run, model: Path, home: Home, db: Database) -> None:
    facts.put(db, "machine", hardware.machine(RECORDED).as_row() | {"usable_bytes": 1000})

    ended = run(str(model), **QUICK)

    assert ended.error_code == "does_not_fit"
    assert "is free" in (ended.error or "")
