"""The lines of a batch that are on their way, each sent again as its failure deserves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import orjson

from state.batches.batches import Batch
from state.batches.lines import BatchLine
from tasks.batches.gateway_lines import Broken, GatewayLines, LineAnswer
from tasks.batches.line_source import LineSource
from tasks.batches.results import LineResult
from tasks.plan import batch as plan

REFUSED_S = 0.5
"""Between two tries while nothing listens on the gateway's port."""
GATHER_S = 0.2
"""How long answers wait for those that end soon after: all of them are written with one sync of the file."""


class Sender:
    """Sends lines and collects how they end.

    Those that have ended and are not written yet count as on their way: a crash has both asked again.
    """

    def __init__(self, gateway: GatewayLines, batch: Batch, source: LineSource) -> None:
        self._gateway = gateway
        self._batch = batch
        self._source = source
        self._concurrency = 0
        self._under_way: set[asyncio.Task[LineResult]] = set()
        self._ended: list[asyncio.Task[LineResult]] = []
        self._news = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether any line is on its way, or has ended and was not taken."""
        return bool(self._under_way or self._ended)

    def fill(self, concurrency: int) -> None:
        """Send lines until `concurrency` of them are on their way. Raises StateUnavailable.

        Called once what wait() returned is written.
        """
        self._concurrency = concurrency
        while len(self._ended) + len(self._under_way) < concurrency and (line := self._source.next()):
            task = asyncio.create_task(self._answer(line))
            self._under_way.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[LineResult]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            self._ended.append(task)
            self._news.set()

    async def wait(self, longest_s: float) -> list[LineResult]:
        """Return the lines that have ended; where there is none, the next ones, after `longest_s` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._news.wait()
                await self._gather()
        self._news.clear()
        ended, self._ended = self._ended, []
        return [task.result() for task in ended]

    async def _gather(self) -> None:
        """Let more lines end, up to a quarter of those on their way, which leaves the engine enough."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                while self._under_way and len(self._ended) * 4 < self._concurrency:
                    self._news.clear()
                    await self._news.wait()

    async def stop(self) -> None:
        """Leave what is on its way: the gateway ends it when the connection closes."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._gateway.close()

    async def _answer(self, line: BatchLine) -> LineResult:
        body = self._source.body(line)
        if body is None:
            return LineResult(line, None, "file_deleted", "The input file was deleted before this request was sent.")
        tries = breaks = 0
        while True:
            try:
                answer = await self._gateway.post(self._batch.endpoint, body)
            except ConnectionRefusedError:
                await asyncio.sleep(REFUSED_S)
                continue
            except (OSError, Broken):
                breaks += 1
                if breaks >= plan.MOST_BREAKS:
                    message = f"The connection to the gateway broke {breaks} times during this request."
                    return LineResult(line, None, "server_error", message)
                await asyncio.sleep(min(plan.LONGEST_WAIT_S, REFUSED_S * 2.0 ** (breaks - 1)))
                continue
            tries += 1
            wait_s = _wait_s(answer, tries)
            if wait_s is None:
                return LineResult(line, answer)
            await asyncio.sleep(wait_s)


def _wait_s(answer: LineAnswer, tries: int) -> float | None:
    """Return the seconds after which a line is sent again, None where its answer is final."""
    try:
        body: Any = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = None
    return plan.retry_wait_s(answer.status, body, tries, answer.retry_after_s)
