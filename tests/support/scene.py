"""Rows as a busy machine leaves them, made by the real steps of jobs and services, for the page's tests."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from typing import Any

from state import facts, fleet, ledger, on_demand, service, stack, worker
from state.batches import batches, stored_files
from state.batches.batches import BatchRequest, BatchStatus
from state.db import Database
from state.errors import EngineFailed
from state.fleet import Node, ServedModel
from state.job import Claim
from state.metrics import bench, cloud_spend, sample, usage
from state.metrics.bench import Bench
from state.metrics.cloud_spend import Spent
from state.metrics.sample import MINUTE_S, Sample
from state.metrics.usage import Usage
from state.on_demand import DiskModel
from state.schedule import schedules
from state.schedule.schedules import Schedule
from state.service import ServiceEvent
from state.stack import Defaults, Engine, Tier
from tasks import kinds
from tasks.system import process

GIB = 2**30
MACHINE = {
    "chip": "M4 Max", "backend": "metal", "os": "macOS 26.2", "memory_bytes": 64 * GIB, "usable_bytes": 48 * GIB,
    "bandwidth_gbps": 546.0, "bandwidth_source": "table", "fp16_tflops": 34.0,
}  # fmt: skip
TIERS = (
    ("standard", "qwen3.5-27b", 8000, 32_768, 17.0, 31.0),
    ("fast", "qwen3.5-4b", 8001, 16_384, 4.5, 118.0),
    ("longctx", "qwen3.5-9b", 8002, 131_072, 11.0, 64.0),
)
SIZE = 5_400_000_000


def set_up(db: Database, ports: dict[str, int] | None = None) -> None:
    """Write a machine and three wanted tiers, none of them up."""
    at = ports or {}
    facts.put(db, "machine", MACHINE)
    facts.put(db, "stack", {"budget_bytes": 43 * GIB})
    tiers = [
        Engine(
            name=name, model=model, quant="int4", source=f"hub:mlx-community/{model}", port=at.get(name, port),
            context=context, memory_bytes=int(size * GIB), cache_bytes=GIB, concurrency=4,
            reasoning_parser="qwen3", weights="/nowhere",
        )
        for name, model, port, context, size, _ in TIERS
    ]  # fmt: skip
    stack.replace(db, tiers)
    for tier in tiers:
        service.ensure(db, tier.name, "engine", tier.port)
    service.ensure(db, "gateway", "gateway", at.get("gateway", 4000))
    service.ensure(db, "page", "page", at.get("page", 4001))
    for row in service.listing(db):
        service.set_desired(db, row.name, "up")


def begin(db: Database, name: str) -> None:
    """Make one service load."""
    service.request_start(db, name, ["engine", name], "f", service.get(db, name).port)
    service.apply(db, name, ServiceEvent.SPAWNED, identity=f"boot/{os.getpid()}/1", started_at=db.now())


def ready(db: Database, name: str, memory: float = 1.0) -> None:
    """Make one service serve; `memory` in GiB."""
    begin(db, name)
    now = db.now()
    service.apply(db, name, ServiceEvent.BECAME_READY, ready_at=now, memory_bytes=int(memory * GIB))


def die(db: Database, name: str, wait_s: float = 30.0) -> None:
    """Make one service end unasked, as the watchdog buries it."""
    service.apply(
        db, name, ServiceEvent.EXITED, identity=None, exit_code=137,
        cause_code="killed", cause="Killed by SIGKILL.",
        hint=f"mlxq logs {name}", next_try_at=db.now() + wait_s, exits=[db.now()], memory_bytes=None,
        restarts=service.get(db, name).restarts + 1,
    )  # fmt: skip


def all_ready(db: Database) -> None:
    """Bring everything up."""
    set_up(db)
    for name, _, _, _, size, _ in TIERS:
        ready(db, name, size * 0.82)
    ready(db, "gateway", 0.6)
    ready(db, "page", 0.05)


def beat(db: Database) -> None:
    """Let a worker be seen alive for the next hour: this process stands for it."""
    me = process.identify(os.getpid())
    assert me is not None
    worker.beat(db, process.encode(me), me.pid, "test", time.monotonic() + 3600)


def an_hour(db: Database) -> None:
    """Write an hour of samples with ups and downs, the same at every call."""
    luck = random.Random(4)
    minute = int(db.now()) // MINUTE_S * MINUTE_S
    rows: list[Sample] = []
    for name, _, _, _, size, speed in TIERS:
        for back in range(59, 0, -1):
            load = max(0.0, math.sin(back / 9 + speed) + luck.uniform(-0.6, 0.7))
            rows.append(
                Sample(
                    name, minute - back * MINUTE_S, MINUTE_S, up=1.0, running=load, requests=int(load * 6),
                    prompt_tokens=int(load * 5000), completion_tokens=int(load * speed * 40),
                    decode_tps=speed * luck.uniform(0.9, 1.05) if load else None,
                    prompt_tps=speed * 14 if load else None, ttft_s=18 / speed * (1 + load / 4) if load else None,
                    memory_bytes=int(size * GIB),
                )
            )  # fmt: skip
    rows.append(Sample("gateway", minute - 8 * MINUTE_S, MINUTE_S, 1.0, fallbacks=2))
    used = Sample(sample.MACHINE, minute - 60, MINUTE_S, 1.0, memory_bytes=38 * GIB, wired_bytes=29 * GIB, swap_bytes=0)
    sample.take(db, [*rows, used])


def a_week(db: Database) -> None:
    """Write what apps asked in a week, and today's way out to the cloud."""
    for back in range(7):
        day = time.strftime("%Y-%m-%d", time.gmtime(db.now() - back * 86_400))
        usage.add(
            db,
            [
                Usage(day, "editor", name, requests=40 * share, failed=share // 2, prompt_tokens=90_000 * share,
                      completion_tokens=9_000 * share, first_byte_seconds=24.0 * share,
                      cached_tokens=60_000 * share)
                for name, share in (("standard", 2), ("fast", 5), ("longctx", 1))
            ],
        )  # fmt: skip
    cloud_spend.write(cloud_spend.place(db.home), Spent(cloud_spend.today(), usd=0.0312, requests=3))


BENCH = Bench(
    model="qwen3-8b", quant="int4", source="hub:x/y", revision="abc", chip="M4 Pro", engine="vllm-mlx 0.6.0",
    mlx="0.32.4", runs=3, concurrency=1, prompt_tokens=1024, gen_tokens=100, ttft_s=1.0, prompt_tps=400.0,
    decode_tps=50.0, decode_low=48.0, decode_high=52.0, total_tps=50.0, peak_bytes=5_000_000_000,
)  # fmt: skip


def benchmarks(db: Database) -> None:
    """Keep some benchmarks of two models; the newest of one is slower after an upgrade."""
    for model, speeds in (("qwen3.5-27b", [29.8, 30.4, 31.2, 31.0]), ("qwen3.5-4b", [112.0, 118.4, 96.1])):
        for number, speed in enumerate(speeds, start=1):
            release = "0.6.0" if number == len(speeds) else "0.5.4"
            bench.save(
                db,
                Bench(
                    model=model, quant="int4", source=f"hub:mlx-community/{model}", revision="", chip="M4 Max",
                    engine=release, mlx="0.32.4", runs=3, concurrency=1, prompt_tokens=1024, gen_tokens=128,
                    ttft_s=40 / speed, prompt_tps=speed * 14, decode_tps=speed, decode_low=speed * 0.97,
                    decode_high=speed * 1.02, total_tps=speed, peak_bytes=17 * GIB,
                ),
            )  # fmt: skip


def pull(db: Database, done: float = 0.43) -> Claim:
    """Put a chain in whose pull is under way, and give the claim on the pull."""
    ledger.enqueue_all(
        db,
        [
            kinds.new("pull", {"source": "hub:mlx-community/qwen3.5-9b"}),
            kinds.new("configure", needs=["pull"]),
            kinds.new("start", {"service": "longctx"}, needs=["configure"]),
        ],
    )
    held = _claim(db, "pull")
    advance(db, held, done)
    return held


def advance(db: Database, held: Claim, done: float) -> None:
    """Let a running pull have come this far, 0 to 1."""
    ledger.report(db, held, "fetching", {"done": int(SIZE * done), "total": SIZE, "unit": "bytes"})


def bustle(db: Database, held: Claim, steps: range, pause_s: float) -> None:
    """Change rows step by step, as hours do: a pull moves, and now and then a job ends, a service dies and is back."""
    for step in steps:
        advance(db, held, step % 1000 / 1000)
        if step % 20 == 0:
            succeed(db, "smoke_test")
        elif step % 20 == 10:
            die(db, "fast")
        elif step % 20 == 11:
            ready(db, "fast")
        time.sleep(pause_s)


def _claim(db: Database, kind: str) -> Claim:
    held = ledger.claim(db, kinds.KINDS[kind].queue, {kind}, "worker-of-the-scene")
    assert held is not None
    return held


def fail(db: Database, name: str = "fast") -> int:
    """Put a job in that fails for good, and give its id."""
    number, _ = ledger.enqueue(db, kinds.new("restart", {"service": name}))
    held = _claim(db, "restart")
    ledger.fail(
        db, held, EngineFailed(f"{name} failed: The weights are truncated or damaged.", hint="mlxq verify qwen3.5-4b")
    )
    return number


def fail_job(db: Database, kind: str, args: dict[str, Any]) -> int:
    """Put any job in that fails for good, and give its id."""
    number, _ = ledger.enqueue(db, kinds.new(kind, args))
    ledger.fail(db, _claim(db, kind), EngineFailed("It failed."))
    return number


def fail_for_good(db: Database, name: str) -> None:
    """Make one service fail so that no other start helps."""
    service.apply(
        db, name, ServiceEvent.FAILED, identity=None, cause_code="failed", memory_bytes=None,
        cause="The weights are truncated or damaged: model.safetensors ends at byte 4,096 of 2,263,022,417.",
        hint="mlxq verify qwen3.5-4b",
    )  # fmt: skip


def stop_all(db: Database) -> None:
    """Stop everything but the page, as `mlxq down` does."""
    for row in service.listing(db):
        if row.name != "page":
            service.set_desired(db, row.name, "down")
            service.apply(db, row.name, ServiceEvent.STOPPED, identity=None, memory_bytes=None)


def share_an_engine(db: Database) -> None:
    """Let the engine of standard serve fast too, which the user stopped."""
    standard, _, longctx = stack.tiers(db)
    second = Tier("fast", standard.engine, Defaults(thinking=False, max_tokens=2048), desired="down")
    stack.replace(db, [standard, second, longctx])
    db.run("DELETE FROM services WHERE name = 'fast'")


def batches_and_schedules(db: Database) -> None:
    """Put a batch in that is half done, and two schedules, of which one has run."""
    lines = [f"{{}}{number}\n".encode() for number in range(3)]
    file = stored_files.store(db, lines, "nightly", "questions.jsonl")
    request = BatchRequest("nightly", "openai", "/v1/chat/completions", file.id, tier="fast", total=1200)
    batch = batches.insert(db, request)
    batches.advance(db, batch, BatchStatus.IN_PROGRESS, succeeded=610, errored=2)
    ledger.enqueue(db, kinds.new("batch", {"batch": batch.id}))
    progress = {"done": 612, "total": 1200, "unit": "requests", "rate": 2.1, "eta_s": 280.0}
    ledger.report(db, _claim(db, "batch"), "answering", progress)
    now = db.now()
    for name, words, cron in (("nightly-bench", "bench fast --save", "30 3 * * *"), ("weekly", "verify", "0 4 * * 0")):
        schedules.put(db, Schedule(name, cron, words, words.split()[0], {}, "run", now, now + 40_000))
    number = succeed(db, "smoke_test")
    schedules.record_run(db, "weekly", number)
    schedules.settle(db)


def a_fleet(db: Database) -> None:
    """Put nodes in the fleet: one that is well, one that is away, and a server of OpenAI's API that drains."""
    now = db.now()
    for node in (
        Node(
            "studio", "mlxq", "https://10.0.0.7:4002", fingerprint="a", running=2, version="0.1.0", seen_at=now,
            serves={name: ServedModel(name, 65_536, 4) for name in ("standard", "fast", "org/repo")},
        ),
        Node("mini", "mlxq", "https://10.0.0.8:4002", fingerprint="b", version="0.1.0", seen_at=now - 400,
             problem="away: no answer from 10.0.0.8:4002"),
        Node("lab", "openai", "http://10.0.0.9:8000", state="draining", seen_at=now),
    ):  # fmt: skip
        fleet.put(db, node)


def on_the_disk(db: Database) -> None:
    """Put two models on the disk, of which one was loaded on demand."""
    entries = [
        DiskModel(model, (), Engine(
            name=model, model=model, quant="int4", source="", port=port, context=32_768, memory_bytes=5 * GIB,
            cache_bytes=GIB, concurrency=2, weights=f"/models/{model}",
        ))
        for model, port in (("gemma-3-4b", 0), ("qwen3-8b", 8005))
    ]  # fmt: skip
    on_demand.put_models(db, entries)
    service.ensure(db, "qwen3-8b", "engine", 8005)
    service.set_desired(db, "qwen3-8b", "up")
    ready(db, "qwen3-8b", 4.0)


def succeed(db: Database, kind: str, **args: Any) -> int:
    """Put a job in that succeeds."""
    number, _ = ledger.enqueue(db, kinds.new(kind, args))
    ledger.succeed(db, _claim(db, kind), {})
    return number


def idle(db: Database) -> None:
    """Leave everything as it is: up, and no request."""


def load(db: Database) -> None:
    """Let a batch run, schedules, models on demand and nodes be there; the requests come from engines that answer."""
    batches_and_schedules(db)
    on_the_disk(db)
    a_fleet(db)


def killed(db: Database) -> None:
    """Let an engine die, which will be started again, while one engine serves two tiers."""
    share_an_engine(db)
    die(db, "longctx", 3000)


def failed(db: Database) -> None:
    """Let an engine and a job fail for good."""
    ready(db, "longctx", 9.0)
    fail(db, "longctx")
    fail_for_good(db, "longctx")


def pulling(db: Database) -> None:
    """Let a pull be under way, with its rate and what is left."""
    held = pull(db)
    pace = {"rate": 61_000_000, "eta_s": 51.0}
    ledger.report(db, held, "fetching", {"done": int(SIZE * 0.43), "total": SIZE, "unit": "bytes", **pace})


State = Callable[[Database], None]
STATES: tuple[State, ...] = (idle, load, killed, failed, pulling, stop_all)
"""What a reader meets on the page, each on top of those before it."""
