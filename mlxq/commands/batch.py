"""`mlxq batch`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from mlxq import job_view, jobs_client, options, render
from state import stack
from state.batches.batches import Batch, BatchStatus
from state.errors import Busy, MlxqError, NotRunning
from state.paths import Home, get_home
from tasks.batches import control
from tasks.batches import output as results


class BatchId(click.ParamType[str]):
    """The id of a batch."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the newest batches."""
        rows = options.completions(lambda db: [(batch.id, str(batch.status)) for batch in control.newest(db)])
        return [CompletionItem(name, help=status) for name, status in rows if name.startswith(incomplete)]


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Run a file of requests in the background.

    The requests run while no others do, and survive every restart. Programs use OpenAI's Batch API and Anthropic's
    Message Batches on the gateway.
    """


@command.command()
@click.argument("file", type=click.Path(allow_dash=True))
@options.tier("Use this tier, whatever model the requests name.")
@click.option("--cloud", is_flag=True, help="Use the cloud for requests that no tier can answer.")
@click.option("--wait", is_flag=True, help="Wait until the batch is finished.")
@click.option("--out", type=click.Path(dir_okay=False), help="Wait, then write the results to this file.")
@options.timeout
def run(file: str, *, tier: str | None, cloud: bool, wait: bool, out: str | None, timeout_s: float | None) -> None:
    """Run the requests in FILE, or on standard input for `-`.

    Each line is a request as in OpenAI's Batch API: {"custom_id": …, "method": "POST", "url": "/v1/chat/completions",
    "body": {"model": "fast", "messages": […]}}.
    """
    home = get_home()
    with jobs_client.changing(home) as db:
        if tier is not None:
            stack.tier(db, tier)  # raises for one that does not exist
        batch = control.create_from(db, sys.stdin.buffer if file == "-" else Path(file), tier=tier, cloud=cloud)
        job = control.enqueue(db, batch)
    click.echo(batch.id)
    if not wait and out is None:
        jobs_client.ensure_worker(home)
        render.next_step(f"mlxq batch show {batch.id}")
        return
    jobs_client.follow(home, jobs_client.these([job]), job_view.view(), timeout_s=timeout_s)
    with jobs_client.reading(home) as db:
        batch = control.get(db, batch.id)
        if out is not None:
            _write(home, batch, out)
    _report(batch)


def _report(batch: Batch) -> None:
    """Say how a batch ended. Raises MlxqError for one that was cancelled or has expired."""
    render.say(f"{batch.succeeded} of {batch.total} requests answered, {batch.errored + batch.unanswered} not.")
    if batch.status is not BatchStatus.COMPLETED:
        raise MlxqError(
            f"The batch {batch.id} was ended before all its requests were answered: {batch.status}.",
            hint=f"mlxq batch output {batch.id} --errors",
        )
    if batch.errored + batch.unanswered:
        render.next_step(f"mlxq batch output {batch.id} --errors")


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List all batches, newest first."""
    with jobs_client.reading(get_home()) as db:
        rows = [_row(batch) for batch in control.newest(db)]
    if as_json:
        render.data({"batches": rows})
    elif rows:
        render.table(
            ["BATCH", "KEY", "STATUS", "ANSWERED", "FAILED", "CREATED"], [_shown(row) for row in rows], right=(3, 4)
        )
    else:
        render.say("There are no batches yet.")
        render.next_step("mlxq batch run --help")


def _shown(row: dict[str, Any]) -> list[Any]:
    """Return a row of the table, which fits on 80 columns."""
    answered, failed = f"{row['succeeded']}/{row['total']}", row["errored"] + row["unanswered"]
    return [row["id"], row["owner"], row["status"], answered, failed, render.ago(row["created_at"])]


def _row(batch: Batch) -> dict[str, Any]:
    return vars(batch) | {"status": str(batch.status)}


@command.command()
@click.argument("batch_id", metavar="ID", type=BatchId())
@options.as_json
def show(batch_id: str, *, as_json: bool) -> None:
    """Show one batch and the errors in its file."""
    with jobs_client.reading(get_home()) as db:
        batch = control.get(db, batch_id)
        job = control.job_of(db, batch)
    if as_json:
        render.data({"batch": _row(batch), "job": None if job is None else job_view.row(job)})
        return
    render.table(["FIELD", "VALUE"], _fields(batch))
    for error in batch.errors:
        line = f"line {error['line']}: " if error.get("line") else ""
        click.echo(f"{line}{error['message']} ({error['code']})")
    if job is not None and job.live:
        render.say(f"Job {job.id}: {job_view.counted(job)}.")
        render.next_step(f"mlxq jobs watch {job.id}")


def _fields(batch: Batch) -> list[Sequence[Any]]:
    return [
        ("id", batch.id),
        ("key", batch.owner),
        ("status", f"{batch.status}: {batch.status.meaning}"),
        ("endpoint", batch.endpoint),
        ("tier", batch.tier),
        ("requests", batch.total),
        ("answered", batch.succeeded),
        ("not answered", batch.errored + batch.unanswered),
        ("created", render.clock(batch.created_at)),
        ("ended", None if batch.ended_at is None else render.clock(batch.ended_at)),
        ("expires", render.clock(batch.expires_at)),
    ]


@command.command()
@click.argument("batch_id", metavar="ID", type=BatchId())
def cancel(batch_id: str) -> None:
    """Cancel a batch; finished requests keep their results."""
    home = get_home()
    with jobs_client.changing(home) as db:
        batch = control.get(db, batch_id)
        if batch.ended:
            raise Busy(f"The batch {batch.id} is {batch.status} already.", hint=f"mlxq batch show {batch.id}")
        control.cancel(db, batch)
    jobs_client.ensure_worker(home)
    render.say(f"The batch {batch.id} is being cancelled.")


@command.command()
@click.argument("batch_id", metavar="ID", type=BatchId())
@click.option("--errors", is_flag=True, help="Print the failed requests instead.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write to this file.")
def output(batch_id: str, *, errors: bool, out: str | None) -> None:
    """Print the results of a finished batch as JSON lines."""
    home = get_home()
    with jobs_client.reading(home) as db:
        batch = control.get(db, batch_id)
    if not batch.ended:
        raise NotRunning(f"The batch {batch.id} has not ended yet.", hint=f"mlxq batch show {batch.id}")
    if out is not None:
        _write(home, batch, out, errors=errors)
    elif source := results.stored(home, batch, errors=errors):
        with source.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    else:
        render.say(f"The batch {batch.id} has no {'failed requests' if errors else 'answers'}.")
        render.next_step(f"mlxq batch show {batch.id}")


def _write(home: Home, batch: Batch, out: str, *, errors: bool = False) -> None:
    results.write(home, batch, Path(out), errors=errors)
    render.say(f"Written to {out}.")
