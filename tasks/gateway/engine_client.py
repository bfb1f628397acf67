"""The way to the engines: one pool of connections, and the failures that are an engine's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson

from tasks.gateway.dialects.json_values import obj
from tasks.gateway.routes import Route
from tasks.plan.gateway import ANSWER_SECONDS

CONNECT_S = 2.0
KEEP_S = 2.0
"""How long an idle connection is kept: less than the 5 s after which uvicorn closes its end of it."""
COUNT_S = 10.0


class EngineDown(Exception):
    """An engine failed by itself: it refused, broke off, or was silent. The message is for a user."""

    def __init__(self, message: str, *, died: bool = False) -> None:
        super().__init__(message)
        self.died = died
        """Whether it went away with the request in its hands."""


class Answer:
    """An engine's answer, from its head on."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.retry_after = response.headers.get("retry-after", "")

    async def read(self) -> bytes:
        """Return the whole body. Raises EngineDown."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            raise failure(problem) from problem

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises EngineDown."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            raise failure(problem) from problem

    def close(self) -> None:
        """Close the connection unless the answer is out: by that an engine stops working on it."""
        self._response.close()


class EngineClient:
    """Sends requests to engines. Made inside the event loop."""

    def __init__(self, key: str) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={
                "authorization": f"Bearer {key}",
                "content-type": "application/json",
                "accept-encoding": "identity",
            },
        )

    async def post(self, route: Route, path: str, content: bytes, *, stream: bool) -> Answer:
        """Send one request, once, and return its answer from the head on. Raises EngineDown."""
        limit = aiohttp.ClientTimeout(
            total=None if stream else max(ANSWER_SECONDS, route.answer_timeout_s),
            sock_connect=CONNECT_S,
            sock_read=route.can.silence_s if stream else None,
        )
        try:
            response = await self._session.post(route.url + path, data=content, timeout=limit, allow_redirects=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            raise failure(problem) from problem
        return Answer(response)

    async def get(self, route: Route, path: str) -> Any:
        """Return the JSON at a path; None where there is none. Raises nothing."""
        return await self._ask("GET", route, path, None)

    async def count_tokens(self, route: Route, text: str) -> int | None:
        """Return how many tokens `text` has for the tier's model; None when its engine does not say."""
        body = {"model": route.engine, "messages": [{"role": "user", "content": text}]}
        answer = await self._ask("POST", route, "/v1/messages/count_tokens", orjson.dumps(body))
        counted = obj(answer).get("input_tokens")
        return counted if isinstance(counted, int) else None

    async def _ask(self, method: str, route: Route, path: str, content: bytes | None) -> Any:
        limit = aiohttp.ClientTimeout(total=COUNT_S, sock_connect=CONNECT_S)
        try:
            async with self._session.request(
                method, route.url + path, data=content, timeout=limit, allow_redirects=False
            ) as response:
                return orjson.loads(await response.read()) if response.ok else None
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
            return None

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def failure(problem: Exception) -> EngineDown:
    """Return what went wrong, in words for a user."""
    if isinstance(problem, aiohttp.ClientConnectorError):
        return EngineDown("refused the connection")
    if isinstance(problem, TimeoutError):
        return EngineDown("timed out")
    return EngineDown("crashed during the request", died=True)
