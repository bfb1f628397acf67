"""A steady load of several clients on a gateway, each in its own manner; whatever they are not answered is kept."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, Self

import httpx
from support import loopback

PAUSE_S = 0.08
"""Of each client: some forty requests a second fill no processor, so that what is tested is not starved by its load."""
ENTIRE = b"data: [DONE]"


class Load:
    """Four clients: streams and whole answers, on a kept connection and on a new one for each request."""

    def __init__(self, port: int, key: str, model: str = "standard") -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.headers = {"Authorization": f"Bearer {key}"}
        self.model = model
        self.answered = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        manners = itertools.product((True, False), repeat=2)
        self._threads = [threading.Thread(target=self._ask, args=manner, daemon=True) for manner in manners]

    def _ask(self, stream: bool, kept: bool) -> None:
        while not self._over.wait(PAUSE_S):
            with loopback.client(timeout=60) as client:
                self.ask(client, stream=stream)
                while kept and not self._over.wait(PAUSE_S):
                    self.ask(client, stream=stream)

    def ask(self, client: httpx.Client, order: str = "say one two three", *, stream: bool, **fields: Any) -> None:
        """Send one request and keep how it went. `fields`: more of its body."""
        message = {"role": "user", "content": order}
        body: dict[str, Any] = {"model": self.model, "messages": [message], "stream": stream, **fields}
        try:
            answer = client.post(self.url, json=body, headers=self.headers)
            whole = answer.status_code == 200 and (not stream or ENTIRE in answer.content)
            failure = "" if whole else f"HTTP {answer.status_code}: {answer.text[-300:]}"
        except httpx.TransportError as problem:
            failure = repr(problem)
        with self._lock:
            self.answered += not failure
            self.failures += [failure] if failure else []

    def await_more(self, number: int = 40) -> None:
        """Wait until `number` more were answered, or one was not."""
        until = self.answered + number
        while self.answered < until and not self.failures:
            time.sleep(0.02)

    def held_stream(self) -> threading.Thread:
        """Have one stream more begun, which the stand-in holds until `Upstream.release`; its thread ends with it."""

        def follow() -> None:
            with loopback.client(timeout=60) as client:
                self.ask(client, "held", stream=True)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        return thread

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more requests, and wait for those under way."""
        self._over.set()
        for thread in self._threads:
            thread.join()
