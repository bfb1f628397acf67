"""A request for a model that sleeps is held: with comments where it streams, and with the reason where it ends."""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from state import keys
from state.job import Job, JobState
from state.paths import Home
from tasks.gateway import reply, routes
from tasks.gateway.admission.api_keys import KeyRing
from tasks.gateway.admission.poison_requests import PoisonGuard
from tasks.gateway.application import Application
from tasks.gateway.cooldown import Cooldown
from tasks.gateway.on_demand import ModelStates, OnDemand, SleepingModel
from tasks.gateway.relay import Relay

MASTER = "sk-mlxq-master-of-the-unit-tests"
TABLE = routes.read(
    {"engines": {"standard": {"port": 1, "context": 8192}}, "tiers": {"standard": {"engine": "standard"}}, "names": {}},
    "cpu",
)
HELD_S = 0.02
QWEN = SleepingModel("qwen", ("qwen",), "qwen.int4", "chat", 4096)
FIELDS: dict[str, Any] = dict.fromkeys(field.name for field in fields(Job))
FIELDS |= {"id": 7, "kind": "load", "state": JobState.RUNNING, "phase": "waits for beta, loaded a moment ago"}
LOADING = Job(**FIELDS)


class Sleeper(OnDemand):
    """One model that sleeps, whose load takes longer than anyone waits."""

    def __init__(self, home: Home) -> None:
        super().__init__(home, TABLE, "cpu", lambda _: None)
        self.known = ModelStates({"qwen": QWEN}, states={"qwen.int4": "sleeping"}, may_sleep=frozenset({"qwen.int4"}))

    def patience(self) -> float:
        return time.monotonic() + HELD_S

    async def _ask(self, subject: str, ask: Any) -> int:
        self.known = replace(self.known, jobs={subject: LOADING})
        return LOADING.id


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Application:
    monkeypatch.setattr(reply, "WAIT_S", 0.0)  # a comment is due before the end also where nothing ran for HELD_S
    home = Home(tmp_path)
    ring = KeyRing(keys.file(home), MASTER, "", lambda: False)
    guard = PoisonGuard(record=home.root / "poison", engines=1)
    relay = Relay(TABLE, cast("Any", None), guard, Cooldown(), None, keep_out=lambda _: None)
    return Application(TABLE, ring, lambda: cast("Any", (None, relay)), lambda _: None, Sleeper(home))


def asked(application: Application, path: str, **body: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            headers = {"authorization": f"Bearer {MASTER}"}
            return await client.post(path, json={"model": "qwen", **body}, headers=headers)

    return asyncio.run(ask())


USER = [{"role": "user", "content": "hi"}]
CHATS = [
    ("/v1/chat/completions", {"messages": USER}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/messages", {"messages": USER, "max_tokens": 4}),
    ("/v1/responses", {"input": "hi"}),
]


@pytest.mark.parametrize(("path", "body"), CHATS)
def test_a_stream_gets_comments_while_it_is_held_and_ends_with_the_reason(
    application: Application, path: str, body: dict[str, Any]
) -> None:
    answer = asked(application, path, stream=True, **body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    comment, _, rest = answer.text.partition("\n\n")
    assert comment.startswith(":")
    assert "qwen was not loaded within" in rest
    assert LOADING.phase
    assert LOADING.phase in rest


@pytest.mark.parametrize(("path", "body"), CHATS)
def test_one_that_is_not_streamed_waits_for_a_503(application: Application, path: str, body: dict[str, Any]) -> None:
    answer = asked(application, path, **body)

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert LOADING.phase
    assert LOADING.phase in answer.json()["error"]["message"]


def test_no_trace_is_left_of_a_wait(application: Application) -> None:
    sleeper: Any = application._on_demand  # pyright: ignore[reportPrivateUsage]
    asked(application, "/v1/completions", prompt="hi")
    assert not sleeper._waiting
    assert not sleeper._changes
