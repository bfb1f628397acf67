"""A request whose client disconnects is dropped at once; one that has begun to answer is left to its engine."""

from __future__ import annotations

import asyncio
from typing import Any

from tasks.engines.asgi import cancelled_on_disconnect

BODY = {"type": "http.request", "body": b"{}", "more_body": False}
LEFT = {"type": "http.disconnect"}


class Client:
    """Sends a body in two parts, and may leave."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.got: list[str] = []
        self._parts = [{"type": "http.request", "body": b"{", "more_body": True}, BODY]

    async def receive(self) -> dict[str, Any]:
        if self._parts:
            return self._parts.pop(0)
        await self.left.wait()
        return LEFT

    async def send(self, message: dict[str, Any]) -> None:
        self.got.append(message["type"])


async def answer(client: Client, receive: Any, send: Any, *, answers: bool, leaves: bool) -> None:
    """Answer at the start or at the end, and see the client leave in between."""
    while (await receive()).get("more_body"):
        pass
    if answers:
        await send({"type": "http.response.start"})
    if leaves:
        client.left.set()
        assert await receive() == LEFT
    if leaves and not answers:
        await asyncio.Event().wait()
    await send({"type": "http.response.body"})


def outcome(*, answers: bool, leaves: bool) -> tuple[str, list[str]]:
    """Return how an application ended and what its client got."""
    client, ended = Client(), ["answered"]

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        try:
            await answer(client, receive, send, answers=answers, leaves=leaves)
        except asyncio.CancelledError:
            ended[:] = ["cancelled"]
            raise

    async def serve() -> None:
        async with asyncio.timeout(5):
            await cancelled_on_disconnect(application)({"type": "http"}, client.receive, client.send)

    asyncio.run(serve())
    return ended[0], client.got


def test_a_request_whose_client_disconnects_before_its_answer_is_cancelled() -> None:
    assert outcome(answers=False, leaves=True) == ("cancelled", [])


def test_an_answer_that_has_begun_or_whose_client_stays_is_left_alone() -> None:
    both = ["http.response.start", "http.response.body"]
    assert outcome(answers=True, leaves=True) == ("answered", both)
    assert outcome(answers=True, leaves=False) == ("answered", both)
    assert outcome(answers=False, leaves=False) == ("answered", both[1:])


def test_what_is_no_request_passes() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], receive, send))

    async def serve() -> None:
        await cancelled_on_disconnect(application)({"type": "lifespan"}, 1, 2)

    asyncio.run(serve())
    assert seen == [("lifespan", 1, 2)]
