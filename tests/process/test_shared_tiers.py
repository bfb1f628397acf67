"""One engine that serves several tiers, with a real worker and gateway: what starts, stops, restarts and leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.mlxq_home import TIER, Mlxq, until
from support.ports import free_port

from mlxq.commands import down, restart, up
from mlxq.setup import edit
from state import facts, job, secrets, service, settings, stack
from state.paths import Home
from state.service import State
from state.stack import Defaults, Tier
from tasks.system import hardware
from tasks.weights import builtin

pytestmark = pytest.mark.slow
MODEL, QUANT = "smollm2-135m", "int4"


@pytest.fixture
def mlxq(home: Home, builtin_model: Path) -> Iterator[Mlxq]:
    """Return a home whose one engine serves three tiers; nothing of it runs yet."""
    values = {"litellm-port": free_port(), "page-port": 0, "model-dir": str(builtin_model.parent)}
    for name, value in values.items():
        settings.write(home, name, value)
    made = Mlxq(home)
    engine = replace(TIER, name="standard", model=MODEL, quant=QUANT, source=builtin.SOURCE, port=free_port())
    engine = replace(engine, weights=str(builtin_model))
    stack.replace(made.db, [Tier("standard", engine), Tier("fast", engine, Defaults(temperature=0.2))])
    stack.replace(made.db, [*stack.tiers(made.db), Tier("longctx", engine)])
    facts.put(made.db, "machine", hardware.detect().as_row())
    yield made
    made.close()


def all_end(mlxq: Mlxq, ids: Sequence[int]) -> None:
    """Wait for jobs and all that follow from them."""
    for number in ids:
        done = mlxq.ended(number)
        assert done.state == "succeeded", (done.kind, done.error, mlxq.logs())
    until(lambda: not any(row.live for row in job.listing(mlxq.db, limit=20)))


def start(mlxq: Mlxq, *names: str) -> None:
    all_end(mlxq, up.begin(mlxq.db, names, ["standard", "fast", "longctx", "gateway"]))


def stop(mlxq: Mlxq, *names: str, drain: bool = False) -> None:
    all_end(mlxq, down.begin(mlxq.db, names, service.listing(mlxq.db), drain=drain))


def ask(mlxq: Mlxq, model: str, **more: Any) -> tuple[int, str]:
    """Return the status of a request, and the tier that answered or the code of the refusal."""
    url = f"http://127.0.0.1:{settings.load(mlxq.home)['litellm-port']}/v1/chat/completions"
    key = secrets.read(mlxq.home.secrets)[secrets.MASTER]
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    if answer.status_code == 200:
        return 200, answer.headers["x-mlxq-tier"]
    return answer.status_code, answer.json()["error"]["code"]


def test_a_tier_stops_alone_and_the_engine_with_the_last_one(mlxq: Mlxq) -> None:
    mlxq.work_with_fakes()
    start(mlxq)
    before = mlxq.identity("standard")
    assert [ask(mlxq, name) for name in ("standard", "fast", "longctx")] == [
        (200, "standard"), (200, "fast"), (200, "longctx")
    ]  # fmt: skip

    stop(mlxq, "fast")

    assert mlxq.identity("standard") == before
    assert ask(mlxq, "fast") == (200, "standard")
    assert ask(mlxq, "fast", disable_fallbacks=True) == (503, "tier_stopped")
    assert ask(mlxq, "longctx", disable_fallbacks=True) == (200, "longctx")

    stop(mlxq, "standard", "longctx")

    assert mlxq.one("standard").state == State.STOPPED
    assert ask(mlxq, "standard")[0] == 503

    start(mlxq, "longctx")

    assert mlxq.one("standard").state == State.READY
    assert ask(mlxq, "fast") == (200, "longctx")
    assert ask(mlxq, "standard", disable_fallbacks=True) == (503, "tier_stopped")
    start(mlxq)
    assert ask(mlxq, "fast") == (200, "fast")


def test_a_restart_of_a_tier_is_one_of_its_engine(mlxq: Mlxq) -> None:
    mlxq.work_with_fakes()
    start(mlxq)
    before = mlxq.identity("standard")

    assert restart.requested(mlxq.db, ["longctx", "fast"]) == ["standard"]
    stop(mlxq, "fast")
    all_end(mlxq, [mlxq.put("restart", service="standard")])

    assert mlxq.identity("standard") != before
    assert ask(mlxq, "longctx") == (200, "longctx")
    assert ask(mlxq, "fast") == (200, "standard"), "a restart starts no tier that the user stopped"


def test_what_was_asked_before_the_worker_was_killed_is_done_by_the_next(mlxq: Mlxq) -> None:
    """The request and its jobs are one transaction."""
    mlxq.work_with_fakes()
    start(mlxq)
    mlxq.kill_worker()
    ids = down.begin(mlxq.db, ["fast"], service.listing(mlxq.db), drain=False)
    assert ask(mlxq, "fast") == (200, "fast"), "engine and gateway serve on without a worker"

    mlxq.work_with_fakes()
    all_end(mlxq, ids)

    assert ask(mlxq, "fast") == (200, "standard")


def change(mlxq: Mlxq, **wanted: Any) -> None:
    """Change the stack as `mlxq setup` does."""
    asked = edit.StackChange(**wanted)
    all_end(mlxq, edit.begin(mlxq.db, edit.plan(mlxq.db, mlxq.home, asked), asked))


def test_a_tier_leaves_and_comes_back_and_its_engine_runs_on(mlxq: Mlxq) -> None:
    mlxq.work_with_fakes()
    start(mlxq)
    before = mlxq.identity("standard")

    change(mlxq, remove=("standard",))

    assert mlxq.identity("standard") == before
    assert [(tier.name, tier.engine.name) for tier in stack.tiers(mlxq.db)] == [
        ("fast", "standard"), ("longctx", "standard")
    ]  # fmt: skip
    assert ask(mlxq, "longctx", disable_fallbacks=True) == (200, "longctx")

    change(mlxq, add=((MODEL, "coder"),))

    assert mlxq.identity("standard") == before
    assert stack.tier(mlxq.db, "coder").engine.name == "standard"
    assert ask(mlxq, "coder", disable_fallbacks=True) == (200, "coder")

    change(mlxq, remove=("fast", "longctx"))
    assert mlxq.identity("standard") == before
    assert ask(mlxq, "coder", disable_fallbacks=True) == (200, "coder")


def test_a_tier_is_added_to_an_engine_that_drains(mlxq: Mlxq) -> None:
    mlxq.work_with_fakes()
    start(mlxq)
    down.begin(mlxq.db, ["standard", "fast", "longctx"], service.listing(mlxq.db), drain=True)

    change(mlxq, add=((MODEL, "coder"),))

    until(lambda: mlxq.one("standard").state == State.READY)
    assert {tier.name for tier in stack.tiers(mlxq.db) if tier.desired == "up"} == {"coder"}
    assert ask(mlxq, "coder", disable_fallbacks=True) == (200, "coder")
    assert ask(mlxq, "fast", disable_fallbacks=True) == (503, "tier_stopped")
