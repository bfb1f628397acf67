"""The job of a batch: its lines are checked, answered side by side, and written to its result files.

It resumes wherever it was: at the check, at the first line without an answer, or at the end. People come first in the
gateway, which interrupts lines for them (tasks/gateway/admission/priority.py).
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

from state import settings
from state.batches import batches, lines
from state.batches.batches import Batch, BatchStatus
from state.db import Database, open_database
from state.errors import Damaged, DiskFull, MlxqError
from state.job import Job, JobState, cancel_asked
from tasks.batches import capacity, control, ending, output
from tasks.batches.gateway_lines import GatewayLines
from tasks.batches.line_source import LineSource
from tasks.batches.results import LineResult, ResultFiles
from tasks.batches.sender import Sender
from tasks.batches.validate import validate
from tasks.plan import batch as plan
from tasks.queue import Context, job, tick
from tasks.runtime import log, runtime
from tasks.system.child import Later

LOOK_S = 1.0
"""How often a batch that waits for answers is looked at: whether it is cancelled, has expired, or its window closed;
and how often it is looked up how many lines its engine takes."""
FULL_S = 30.0
PACE_S = 60.0
AT_ONCE = 2000
"""Lines without an answer that are written in one step: each is a sync of the file and a transaction."""
SETTLE_S = 10.0


@job("batch")
def answer_batch(context: Context, batch: str) -> dict[str, Any]:
    """Answer a batch to its end. Returns {"batch", "status", "succeeded", "errored"}. Raises Later, MlxqError."""
    row = batches.get(context.db, batch)
    try:
        _answer(context, row)
    except DiskFull as problem:
        raise Later("waits for room on the disk", FULL_S) from problem
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise MlxqError(f"The results of {batch} cannot be written: {problem.strerror}.") from problem
        raise Later("waits for room on the disk", FULL_S) from problem
    ended = batches.get(context.db, batch)
    if ended.status is BatchStatus.FAILED:
        raise MlxqError(f"The batch {batch} failed: {_first(ended)}", hint=f"mlxq batch show {batch}")
    return {"batch": batch, "status": str(ended.status), "succeeded": ended.succeeded, "errored": ended.errored}


@job("write_batch_output")
def write_batch_output(context: Context, batch: str, out: str) -> dict[str, Any]:
    """Write the answers of an ended batch to a file. Returns {"batch", "out"}. Raises NotFound, MlxqError."""
    output.write(context.home, batches.get(context.db, batch), Path(out))
    return {"batch": batch, "out": out}


def _first(batch: Batch) -> str:
    """Return the first fault of a batch's file."""
    error = batch.errors[0]
    return f"line {error['line']}: {error['message']}" if error.get("line") else str(error["message"])


def _answer(context: Context, batch: Batch) -> None:
    """Take a batch from wherever it is to its end. Raises Later, DiskFull, OSError, MlxqError."""
    gateway = GatewayLines(context.home, batch)
    if batch.status is BatchStatus.VALIDATING:
        _await_window(context, batch)
        validate(context, batch, gateway)
        batch = batches.get(context.db, batch.id)
    if batch.status in {BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}:
        _answer_lines(context, batch, gateway)
        batch = batches.get(context.db, batch.id)
    if batch.status is BatchStatus.FINALIZING:
        ending.finish(context.db, batch, BatchStatus.COMPLETED)


def _await_window(context: Context, batch: Batch) -> None:
    """Raise Later until batches are answered, or this one expires."""
    if (wait_s := window_s(context, batch)) and batch.status is not BatchStatus.CANCELLING:
        raise Later("waits for the bulk window", wait_s)


def window_s(context: Context, batch: Batch) -> float:
    """Return the seconds until the lines of a batch may be answered, 0 for now."""
    now = time.localtime()
    opens_in_s = plan.window_opens_in_s(settings.load(context.home)["bulk-window"], now.tm_hour, now.tm_min)
    return min(opens_in_s, max(0.0, batch.expires_at - context.db.now()))


def _answer_lines(context: Context, batch: Batch, gateway: GatewayLines) -> None:
    """Answer what has no answer yet, up to a cancellation, the end of the window, or the expiry. Raises Later."""
    with closing(open_database(context.home)) as db:  # of the thread that writes while lines are sent
        results = ResultFiles(db, batch, lambda: cancel_asked(db, context.claim))
        try:
            if not _over(context, batch):
                _await_window(context, batch)
                asyncio.run(_send_all(context, batch, gateway, results))
            _end_lines(context, batch, results)
        finally:
            results.close()


def _over(context: Context, batch: Batch) -> BatchStatus | None:
    """Return what a batch that takes no more answers comes to: cancelled or expired; None for one that goes ahead."""
    if batches.get(context.db, batch.id).status is BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if context.db.now() >= batch.expires_at else None


class BatchPace:
    """How fast lines are answered, over the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def see(self, done: int) -> None:
        """Take a sample."""
        now = time.monotonic()
        self._samples.append((now, done))
        while now - self._samples[0][0] > PACE_S:
            self._samples.popleft()

    def shown(self, total: int) -> dict[str, float]:
        """Return {"rate", "eta_s"}: lines a second and the seconds that are left; nothing before there is one."""
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        if last == first or last_at == first_at:
            return {}
        rate = (last - first) / (last_at - first_at)
        return {"rate": rate, "eta_s": (total - last) / rate}


async def _send_all(context: Context, batch: Batch, gateway: GatewayLines, results: ResultFiles) -> None:
    """Keep as many lines on their way as the engine takes. Raises OSError, MlxqError, and as context.check does."""
    pace, looks_at, most = BatchPace(), 0.0, capacity.LEAST
    with LineSource(context.db, batch) as source:
        sender = Sender(gateway, batch, source)
        try:
            while True:
                if (now := time.monotonic()) >= looks_at:  # the stack changes rarely, and lines end often
                    looks_at = now + LOOK_S
                    if _over(context, batch) or window_s(context, batch):
                        return
                    most = capacity.in_flight(context.db, context.home, batch, source.model)
                    _report(context, batch, pace)
                sender.fill(most)
                if not sender.busy:
                    return
                if ended := await sender.wait(looks_at - now):
                    await asyncio.to_thread(results.write, ended)
        finally:
            await sender.stop()


def _report(context: Context, batch: Batch, pace: BatchPace) -> None:
    """Report how far the batch is. Raises as context.check does."""
    now = batches.get(context.db, batch.id)
    pace.see(now.succeeded + now.errored)
    context.report(
        "answers", done=now.succeeded + now.errored, total=now.total, unit="requests", **pace.shown(now.total)
    )
    context.check()


def _end_lines(context: Context, batch: Batch, results: ResultFiles) -> None:
    """Write why the lines that are left have no answer, and end the batch; or raise Later where it resumes."""
    status = _over(context, batch)
    if status is None:
        if lines.unanswered(context.db, batch, 0, 1):
            raise Later("waits for the bulk window", max(LOOK_S, window_s(context, batch)))
        batches.advance(context.db, batch, BatchStatus.FINALIZING)
        return
    write_unanswered(context.db, batch, results, status)
    ending.finish(context.db, batches.get(context.db, batch.id), status)


UNANSWERED = {
    BatchStatus.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was answered."),
    BatchStatus.EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
    BatchStatus.FAILED: ("server_error", "The batch ended before this request was answered."),
}
"""Status -> code and message of its lines without an answer; the second message is OpenAI's."""


def write_unanswered(db: Database, batch: Batch, results: ResultFiles, status: BatchStatus) -> None:
    """Write each line that has no answer with the reason, a page at a time. Raises OSError, StateUnavailable."""
    code, message = UNANSWERED[status]
    after = 0
    while page := lines.unanswered(db, batch, after, AT_ONCE):
        results.write([LineResult(line, None, code, message) for line in page])
        after = page[-1].n


@tick("settle batches", SETTLE_S)
def settle_batches() -> None:
    """End the batches whose jobs have ended without them."""
    settle(runtime.database())


def settle(db: Database) -> None:
    """End each batch whose job failed or was cancelled; what was answered is in its results."""
    for batch in batches.unfinished(db):
        ended = control.job_of(db, batch)
        if ended is None or ended.state is JobState.SUCCEEDED:
            control.enqueue(db, batch)
        elif not ended.live:
            _end_with(db, batch, ended)


def _end_with(db: Database, batch: Batch, ended: Job) -> None:
    """End a batch as its job ended. Raises StateUnavailable."""
    status = BatchStatus.CANCELLED if ended.state is JobState.CANCELLED else BatchStatus.FAILED
    if status is BatchStatus.CANCELLED:
        batches.advance(db, batch, BatchStatus.CANCELLING)
    try:
        results = ResultFiles(db, batch)
        try:
            write_unanswered(db, batch, results, status)
        finally:
            results.close()
        batch = batches.get(db, batch.id)
        ending.finish(db, batch, status, _errors(ended) if status is BatchStatus.FAILED else None)
    except (OSError, Damaged) as problem:
        log.error("batch_not_settled", batch=batch.id, error=str(problem))  # noqa: TRY400 (tried again)


def _errors(ended: Job) -> list[dict[str, Any]]:
    message = f"Job {ended.id}: {ended.error}"
    return [{"code": "server_error", "message": message, "param": None, "line": None}]
