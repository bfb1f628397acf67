"""The lines of a batch that are on their way, each sent again as its failure deserves."""

from __future__ import annotations

import asyncio
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


class Sender:
    """Sends lines and collects how they end."""

    def __init__(self, gateway: GatewayLines, batch: Batch, source: LineSource) -> None:
        self._gateway = gateway
        self._batch = batch
        self._source = source
        self._under_way: set[asyncio.Task[LineResult]] = set()

    @property
    def busy(self) -> bool:
        """Whether any line is on its way."""
        return bool(self._under_way)

    def fill(self, concurrency: int) -> None:
        """Send lines until `concurrency` of them are on their way."""
        while len(self._under_way) < concurrency and (line := self._source.next()):
            self._under_way.add(asyncio.create_task(self._answer(line)))

    async def wait(self, longest_s: float) -> list[LineResult]:
        """Wait for the next lines to end, for `longest_s` seconds at most; return them."""
        done, self._under_way = await asyncio.wait(
            self._under_way, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED
        )
        return [task.result() for task in done]

    async def stop(self) -> None:
        """Leave what is on its way: the gateway ends it when the connection closes."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

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
