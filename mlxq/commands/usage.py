"""`mlxq usage`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from mlxq import jobs_client, options, prompt_reuse, render
from state.metrics import usage
from state.paths import get_home


@click.command()
@click.option(
    "--by", type=click.Choice(["key", "tier", "day"]), default="tier", show_default=True, help="What to group by."
)
@click.option("--days", type=click.IntRange(min=1, max=3650), metavar="N", help="Only the last N days, with today.")
@options.as_json
def command(*, by: usage.By, days: int | None, as_json: bool) -> None:
    """Show request and token counts.

    CACHED is the share of the input that was not read again. Times are means per request: LATENCY of the whole
    response, TTFT (time to first token), QUEUED before it began. Days are UTC. Prompts and responses are never stored,
    only these sums.
    """
    since = "" if days is None else time.strftime("%Y-%m-%d", time.gmtime(time.time() - (days - 1) * render.DAY_S))
    with jobs_client.reading(get_home()) as db:
        totals = usage.totals(db, by, since)
    if as_json:
        render.data({"by": by, "since": since or None, "usage": totals})
    elif totals:
        render.table(
            [by.upper(), "REQS", "FAILED", "FALLBACKS", "INPUT", "CACHED", "OUTPUT", "LATENCY", "TTFT", "QUEUED"],
            [_row(by, sums) for sums in totals],
            right=range(1, 10),
        )
    else:
        render.say("No requests yet." if days is None else f"No requests in the last {days} days.")


def _row(by: str, sums: Mapping[str, Any]) -> list[Any]:
    """Return the sums as they are, and the times per request."""
    share = 1 / sums["requests"]
    return [
        sums[by],
        sums["requests"],
        sums["failed"],
        sums["fallbacks"],
        sums["prompt_tokens"],
        prompt_reuse.percent(usage.cached_share(sums)),
        sums["completion_tokens"],
        render.span(sums["seconds"] * share),
        render.span(sums["first_byte_seconds"] * share),
        render.span(sums["waited_seconds"] * share),
    ]
