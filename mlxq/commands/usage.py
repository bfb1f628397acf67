"""`mlxq usage`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from mlxq import jobs_client, options, render
from state import usage
from state.paths import get_home


@click.command()
@click.option("--by", type=click.Choice(["key", "tier", "day"]), default="tier", show_default=True, help="Sum up by.")
@click.option("--days", type=click.IntRange(min=1, max=3650), metavar="N", help="Only today and the N-1 days before.")
@options.as_json
def command(*, by: usage.By, days: int | None, as_json: bool) -> None:
    """Show what was asked of the gateway: requests, tokens, times.

    Days are UTC. No word of a prompt is kept, only these sums.
    """
    since = "" if days is None else time.strftime("%Y-%m-%d", time.gmtime(time.time() - (days - 1) * render.DAY_S))
    with jobs_client.reading(get_home()) as db:
        found = usage.totals(db, by, since)
    if as_json:
        render.data({"by": by, "since": since or None, "usage": found})
    elif found:
        render.table(
            [by.upper(), "REQUESTS", "FAILED", "FALLBACKS", "PROMPT", "ANSWER", "TIME", "FIRST WORD", "WAITED"],
            [_row(by, each) for each in found],
            right=range(1, 9),
        )
    else:
        render.say("Nothing was asked of the gateway yet." if days is None else "Nothing was asked of it in that time.")


def _row(by: str, sums: Mapping[str, Any]) -> list[Any]:
    """Give the sums as they are, and times for one request."""
    each = 1 / sums["requests"]
    return [
        sums[by],
        sums["requests"],
        sums["failed"],
        sums["fallbacks"],
        sums["prompt_tokens"],
        sums["completion_tokens"],
        render.span(sums["seconds"] * each),
        render.span(sums["first_byte_seconds"] * each),
        render.span(sums["waited_seconds"] * each),
    ]
