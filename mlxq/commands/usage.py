"""`mlxq usage`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import click

from mlxq import jobs_client, options, prompt_reuse, render
from state.errors import UsageProblem
from state.metrics import usage
from state.paths import get_home

BAR = 36
"""Characters of the longest bar: with a day and its tokens it fits 80 columns."""


@click.command()
@click.option(
    "--by", type=click.Choice(["key", "tier", "day"]), default="tier", show_default=True, help="What to group by."
)
@click.option("--days", type=click.IntRange(min=1, max=3650), metavar="N", help="Only the last N days, with today.")
@click.option("--plot", is_flag=True, help="Draw the tokens as bars.")
@options.as_json
def command(*, by: usage.By, days: int | None, plot: bool, as_json: bool) -> None:
    """Show request and token counts.

    CACHED is the share of the input that was not read again. Times are means per request: LATENCY of the whole
    response, TTFT (time to first token), QUEUED before it began. Days are UTC. Prompts and responses are never stored,
    only these sums.
    """
    if plot and as_json:
        raise UsageProblem("--plot is for people, --json for programs.", hint="mlxq usage --json")
    since = "" if days is None else time.strftime("%Y-%m-%d", time.gmtime(time.time() - (days - 1) * render.DAY_S))
    with jobs_client.reading(get_home()) as db:
        totals = usage.totals(db, by, since)
    if as_json:
        render.data({"by": by, "since": since or None, "usage": totals})
    elif totals and plot:
        for line in bars(by, totals):
            click.echo(line)
    elif totals:
        render.table(
            [by.upper(), "REQS", "FAILED", "FALLBACKS", "INPUT", "CACHED", "OUTPUT", "LATENCY", "TTFT", "QUEUED"],
            [_row(by, sums) for sums in totals],
            right=range(1, 10),
        )
    else:
        render.say("No requests yet." if days is None else f"No requests in the last {days} days.")


def bars(by: usage.By, totals: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a bar of all tokens for each row, the longest over the whole width; days without requests have none."""
    rows = {str(sums[by] or "none"): sums for sums in totals}
    names = _days(min(rows), max(rows)) if by == "day" else list(rows)
    width, most = max(map(len, names)), max(_tokens(sums) for sums in totals)
    return [f"{name:<{width}}  {_bar(rows.get(name), most)}".rstrip() for name in names]


def _days(first: str, last: str) -> list[str]:
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    return [str(start + timedelta(number)) for number in range((end - start).days + 1)]


def _tokens(sums: Mapping[str, Any]) -> int:
    return sums["prompt_tokens"] + sums["completion_tokens"]


def _bar(sums: Mapping[str, Any] | None, most: int) -> str:
    """Return a bar in eighths of a character, and what it stands for."""
    if sums is None:
        return ""
    eighths = round(8 * BAR * _tokens(sums) / most) if most else 0
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return f"{bar:<{BAR}}  {sums['prompt_tokens']:,} in, {sums['completion_tokens']:,} out"


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
