"""`mlxq bench`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from click.shell_completion import CompletionItem

from catalog import units
from mlxq import job_view, jobs_client, local_models, options, render
from mlxq.setup import recommendation
from state import bench as kept
from state import facts, stack
from state.bench import Bench
from state.db import Database
from state.errors import NotFound, UsageProblem
from state.job import JobState
from state.paths import Home, get_home
from tasks import kinds, recommend
from tasks.plan.bench import regressions

MEANINGS = {
    "PASS": "about as fast as expected",
    "WARN": "at least 15 % slower than expected",
    "FAIL": "at least 30 % slower than expected",
}
BAR = 20
"""Characters of the longest bar of the plot."""


class Counts(click.ParamType[list[int]]):
    """Whole numbers with commas between them, such as 1,4."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Read them, or say how they must be written."""
        words = str(value).split(",")
        if not all(word.isascii() and word.isdecimal() and 1 <= int(word[:9]) <= 64 for word in words):  # noqa: PLR2004 (more no engine takes)
            self.fail(f"give numbers from 1 to 64 with commas between them, such as 1,4, not {value!r}.", param, ctx)
        return list(dict.fromkeys(map(int, words)))


class TargetName(options.InstalledName):
    """A tier or a model."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete it from the tiers and the weights that are here."""
        return options.complete_tier(ctx, param, incomplete) + super().shell_complete(ctx, param, incomplete)


@click.command()
@click.argument("target", metavar="TARGET", type=TargetName(), required=False)
@click.option("--save", is_flag=True, help="Keep the figures: they correct every prediction for this machine.")
@click.option("--quant", metavar="NAME", help="Which of the quants that are here.")
@click.option("--runs", type=click.IntRange(1, 20), default=3, show_default=True, help="So often after the warm-up.")
@click.option(
    "--prompt-tokens", type=click.IntRange(64, 131072), help="About so many.  [default: 1024; 128 without a GPU]"
)
@click.option("--gen-tokens", type=click.IntRange(16, 4096), help="At most so many.  [default: 128; 32 without a GPU]")
@click.option("--concurrency", type=Counts(), default="1", show_default=True, metavar="N,…", help="Requests at once.")
@click.option("--history", type=TargetName(), metavar="MODEL", help="Show what was kept of MODEL, measure nothing.")
@options.timeout
@options.as_json
def command(
    target: str | None,
    *,
    save: bool,
    quant: str | None,
    history: str | None,
    timeout_s: float | None,
    as_json: bool,
    **shape: Any,
) -> None:
    """Time a tier, or a model on an engine of its own.

    TARGET is a tier that runs, or weights that are here. Prompts are new each time, so that no cache helps.
    """
    place = get_home()
    if (target is None) == (history is None):
        raise UsageProblem("Give a TARGET to time, or --history MODEL.", hint="mlxq bench --help")
    if history is not None:
        _history(place, history, as_json=as_json)
        return
    with jobs_client.reading(place) as db:
        what = _what(place, db, str(target), quant)
    with jobs_client.writing(place) as db:
        ids = jobs_client.enqueue(db, [kinds.new("bench", {"target": what, "save": save, **shape})])
    (job,) = jobs_client.follow(place, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    assert job.state is JobState.SUCCEEDED, "follow raises what failed"
    if as_json:
        render.data(job.result)
        return
    show(job.result)
    if not job.result["saved"]:
        render.next_step(f"mlxq bench {target} --save")


def _what(place: Home, db: Database, target: str, quant: str | None) -> str:
    """Give the tier's name, or the folder of the weights. Raises NotFound."""
    if target in {tier.name for tier in stack.tiers(db)}:
        return target
    known = recommend.known(place)
    found = local_models.choose(target, local_models.listing(place, db, known), known, quant)
    whole = [one for one in found if one.state in {"valid", "loadable"}]
    if not whole:
        raise NotFound(f"The weights of {target} are {found[0].state}.", hint=f"mlxq verify {target}")
    return str(max(whole, key=lambda one: one.pulled).folder)


def show(result: Mapping[str, Any]) -> None:
    """Print what a benchmark found."""
    click.echo(f"{result['model']} {result['quant']}, {result['engine']}, mlx {result['mlx']}\n")
    render.table(
        ["AT ONCE", "PROMPT", "TTFT", "PROMPT/S", "TOK/S", "TOK/S IN ALL"],
        [_round(each) for each in result["rounds"]],
        right=(0, 1, 2, 3, 4, 5),
    )
    tools = {None: "not asked", True: "called right", False: "not called, or not read"}[result["tools"]]
    click.echo(f"\nMemory at its peak {units.memory(result['peak_bytes'])}. Tools: {tools}.")
    click.echo(f"A second turn read {1 - result['reused']:.0%} of the first one again.")
    if expected := result["predicted"]:
        decode, prompt = recommendation.brief(expected["decode"]), recommendation.brief(expected["prompt"])
        click.echo(
            f"{result['verdict']}: {MEANINGS[result['verdict']]} "
            f"({decode} tokens/s, prompts at {prompt}/s; {expected['basis']})."
        )


def _round(each: Mapping[str, Any]) -> list[str | int]:
    low, high = recommendation.brief(each["decode_low"]), recommendation.brief(each["decode_high"])
    return [
        each["concurrency"],
        each["prompt_tokens"],
        f"{each['ttft_s']:.2f}s",
        recommendation.brief(each["prompt_tps"]),
        f"{recommendation.brief(each['decode_tps'])} ({low}-{high})",
        recommendation.brief(each["total_tps"]),
    ]


def _history(place: Home, name: str, *, as_json: bool) -> None:
    """Show the benchmarks kept of a model, with what got slower. Raises NotFound."""
    with jobs_client.reading(place) as db:
        tiers = {tier.name: tier.model for tier in stack.tiers(db)}
        model = tiers.get(name) or _known_as(place, db, name)
        rows = kept.history(db, model, facts.get(db, "machine").get("chip", ""))
    if not rows:
        raise NotFound(f"No benchmark of {model} was kept on this machine.", hint=f"mlxq bench {name} --save")
    slower = regressions(rows)
    if as_json:
        told = [asdict(row) | {"regression": slower.get(place)} for place, row in enumerate(rows)]
        render.data({"model": model, "benches": told})
        return
    for line in plot(rows, slower):
        click.echo(line)


def _known_as(place: Home, db: Database, name: str) -> str:
    """Give the name a model has in the benchmarks: its id, else where it came from. Raises NotFound."""
    known = recommend.known(place)
    for one in local_models.listing(place, db, known):
        if one.model not in known and name in {one.model, one.folder.name, one.source}:
            return one.source or f"file:{one.folder}"
    if "/" in name and name not in {quant.repo for model in known.values() for quant in model.quants.values()}:
        return f"hub:{name.removeprefix('hub:')}"
    return recommend.find(name, known).model.id


def plot(rows: Sequence[Bench], slower: Mapping[int, str]) -> list[str]:
    """Draw a bar of the decode speed for each benchmark, the oldest first; within 80 columns but for the flags."""
    fastest = max(row.decode_tps for row in rows)
    lines: list[str] = []
    for place, row in enumerate(rows):
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.at))
        bar = "█" * max(1, round(BAR * row.decode_tps / fastest))
        what = f"{row.quant} x{row.concurrency}"
        line = f"{day}  {row.engine}/{row.mlx}  {what:<8} {bar:<{BAR}} {recommendation.brief(row.decode_tps)} tok/s"
        lines += [line, *([f"  ! {slower[place]}"] if place in slower else [])]
    return lines
