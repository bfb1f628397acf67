"""A running stack of one tier, and two models on disk of which one fits beside it at a time."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from support import loopback
from support.mlxq_home import TIER, Mlxq, until
from support.ports import free_port, free_run
from support.recovery import up_with_gateway

from state import facts, job, on_demand, secrets, service, settings, stack
from state.paths import Home
from state.stack import Tier
from tasks.on_demand import requests
from tasks.system import hardware
from tasks.weights import builtin, manifest

GIB = 2**30
MIN_STAY_S = 2
LOAD_TIMEOUT_S = 150
"""An engine that starts in a second on a quiet machine took more than a minute at a load average of 30 on two cores."""
NAMES = ("alpha", "beta")


def make(home: Home, made: Path | None = None) -> Mlxq:
    """Return a home with a stack and the models, of which nothing runs yet; `made`: the built-in model, if it is."""
    home.models.mkdir(exist_ok=True)
    if made is not None:
        shutil.copytree(made, home.models / made.name, copy_function=os.link)
    weights = builtin.ensure(home.models)
    for name in NAMES:
        shutil.copytree(weights, home.models / name, copy_function=os.link)
        (home.models / name / manifest.NAME).unlink()  # weights that a user copied there
    values = {"page-port": 0, "tier-port-base": free_run(60), "min-stay": MIN_STAY_S, "load-timeout": LOAD_TIMEOUT_S}
    for name, value in values.items():
        settings.write(home, name, value)
    mlxq = Mlxq(home)
    engine = replace(TIER, name="standard", port=free_port(), memory_bytes=GIB, weights=str(weights))
    stack.replace(mlxq.db, [Tier("standard", engine)])
    machine = hardware.detect().as_row()
    facts.put(mlxq.db, "machine", machine | {"usable_bytes": 32 * GIB // 10, "memory_bytes": 8 * GIB})
    return mlxq


def up(mlxq: Mlxq) -> None:
    """Bring the stack up, once its worker runs, and wait until the models are known."""
    up_with_gateway(mlxq, free_port())
    until(lambda: len(on_demand.models(mlxq.db)) >= 1 + len(NAMES))


def all_asleep(mlxq: Mlxq) -> None:
    """Have every model on demand sleep."""
    until(lambda: not any(row.live for row in job.listing(mlxq.db, kind="load", limit=20)))
    for entry in on_demand.models(mlxq.db):
        if requests.is_up(mlxq.db, entry.engine.name):
            mlxq.ended(requests.unload(mlxq.db, entry.engine.name))
    until(lambda: not loaded(mlxq))


def loaded(mlxq: Mlxq) -> list[str]:
    """Return the engines on demand that have a service."""
    names = {entry.engine.name for entry in on_demand.models(mlxq.db)}
    return [row.name for row in service.listing(mlxq.db) if row.name in names]


def gateway(mlxq: Mlxq) -> httpx.Client:
    """Return a client of the gateway with the master key."""
    key = secrets.read(mlxq.home.secrets)[secrets.MASTER]
    url = f"http://127.0.0.1:{settings.load(mlxq.home)['litellm-port']}"
    return loopback.client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=LOAD_TIMEOUT_S + 30)


def chat(model: str, **more: Any) -> dict[str, Any]:
    """Return the body of a chat."""
    return {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}], **more}


def ask(mlxq: Mlxq, model: str, **more: Any) -> httpx.Response:
    """Ask the gateway for a chat."""
    with gateway(mlxq) as client:
        return client.post("/v1/chat/completions", json=chat(model, **more))


def asking(mlxq: Mlxq, model: str) -> Future[httpx.Response]:
    """Ask in a thread, and return once the engine is being loaded."""
    pool = ThreadPoolExecutor(1)
    answer = pool.submit(ask, mlxq, model)
    pool.shutdown(wait=False)
    until(lambda: (row := service.find(mlxq.db, f"{model}.int4")) and row.identity)
    return answer


def swaps(mlxq: Mlxq) -> list[float]:
    """Return when a model had to leave for another one, in unix seconds."""
    return [row["at"] for row in mlxq.db.rows("SELECT at FROM events WHERE name = 'evicted' ORDER BY id")]


def states(mlxq: Mlxq) -> dict[str, str]:
    """Return the state of every model as the gateway lists it."""
    with gateway(mlxq) as client:
        return {entry["id"]: entry["state"] for entry in client.get("/v1/models").json()["data"]}
