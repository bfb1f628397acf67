"""Clients of a fleet's fronts: they ask, and keep which node answered, when, and after how many tries."""

from __future__ import annotations

import itertools
import json
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from state.paths import Home
from tasks.system import certificates

LIMIT_S = 30.0
"""For one answer."""
ANSWERS_S = 180.0
"""For many."""


@dataclass(frozen=True)
class Answer:
    """One request and what came of it; times are those of time.monotonic."""

    began: float
    ended: float
    status: int
    """0 where there was no answer."""
    node: str = ""
    retries: int = 0
    text: str = ""

    @property
    def took_s(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True)
class Entrance:
    """Where a front is asked, and by which certificate it is known."""

    url: str
    context: ssl.SSLContext

    @classmethod
    def of(cls, url: str, home: Home) -> Entrance:
        context = ssl.create_default_context(cafile=str(certificates.authority_file(home.tls)))
        return cls(url, context)

    def client(self, key: str, limit_s: float = LIMIT_S) -> httpx.Client:
        """Return a client that trusts only this front and times out after `limit_s` seconds without an answer."""
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(
            base_url=self.url, verify=self.context, trust_env=False, headers=headers, timeout=httpx.Timeout(limit_s)
        )


_numbers = itertools.count()


def ordered(**script: Any) -> dict[str, Any]:
    """Return a request of a conversation of its own, of which the scripted engine does what `script` says."""
    words = f"Conversation {next(_numbers)}: script {json.dumps({'text': 'ok', **script})}"
    return {"model": "standard", "messages": [{"role": "user", "content": words}]}


def ask(client: httpx.Client, body: dict[str, Any]) -> Answer:
    """Ask once; every outcome is an answer."""
    began = time.monotonic()
    try:
        response = client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as problem:
        return Answer(began, time.monotonic(), 0, text=repr(problem))
    node = response.headers.get("x-litellm-model-id", "").partition("@")[2]
    retries = int(response.headers.get("x-litellm-attempted-retries", "0"))
    return Answer(began, time.monotonic(), response.status_code, node, retries, response.text)


def converse(entrances: Sequence[Entrance], key: str, turns: int) -> list[str]:
    """Return which node answered each turn of a new conversation, whose turns come in at the fronts in turn."""
    body, nodes = ordered(wait_s=0.05), list[str]()
    for turn in range(turns):
        with entrances[turn % len(entrances)].client(key) as client:
            answer = ask(client, body)
        assert answer.status == httpx.codes.OK, answer.text
        nodes.append(answer.node)
        more = [{"role": "assistant", "content": "ok"}, {"role": "user", "content": f"And {turn}?"}]
        body = body | {"messages": [*body["messages"], *more]}
    return nodes


@dataclass
class Load:
    """Clients that ask fronts, each one of them, one request after another, while the block lasts."""

    entrances: Sequence[Entrance]
    key: str
    clients: int
    script: dict[str, Any] = field(default_factory=lambda: {"wait_s": 0.1})
    answers: list[Answer] = field(default_factory=list[Answer])
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def __enter__(self) -> Self:
        for number in range(self.clients):
            entrance = self.entrances[number % len(self.entrances)]
            thread = threading.Thread(target=self._ask, args=(entrance,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * LIMIT_S)

    def _ask(self, entrance: Entrance) -> None:
        with entrance.client(self.key) as client:
            while not self._over.is_set():
                self.answers.append(ask(client, ordered(**self.script)))
                if self.answers[-1].status == 0:  # a front that is gone is not asked in a circle
                    self._over.wait(0.05)

    def run(self, seconds: float) -> None:
        """Go on for so long."""
        with suppress(TimeoutError):
            self._over.wait(seconds)

    def await_more(self, number: int) -> None:
        """Wait until `number` more were answered."""
        until = len(self.answers) + number
        deadline = time.monotonic() + ANSWERS_S
        while len(self.answers) < until:
            assert time.monotonic() < deadline, "the fronts answer too slowly"
            time.sleep(0.01)


def lost(answers: Iterable[Answer], since: float) -> list[Answer]:
    """Return the requests that began at a moment or later and failed."""
    return [answer for answer in answers if answer.began >= since and answer.status != httpx.codes.OK]


def median_s(answers: Sequence[Answer]) -> float:
    """Return how long the middle one of these took."""
    return sorted(answer.took_s for answer in answers)[len(answers) // 2]
