"""`mlxq bench`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from click.shell_completion import CompletionItem

from catalog import units
from catalog.intent import TIERS
from mlxq import job_view, jobs_client, local_models, options, render
from mlxq.setup import recommendation
from state import facts, stack
from state.db import Database
from state.errors import NotFound, UsageProblem
from state.job import JobState
from state.metrics import bench as kept
from state.metrics.bench import Bench
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
    """Whole numbers separated by commas, such as 1,4."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the numbers, or say how they must be written."""
        words = str(value).split(",")
        if not all(word.isascii() and word.isdecimal() and 1 <= int(word[:9]) <= 64 for word in words):  # noqa: PLR2004 (more no engine takes)
            self.fail(f"numbers from 1 to 64 separated by commas are needed, such as 1,4, not {value!r}.", param, ctx)
        return list(dict.fromkeys(map(int, words)))


class TargetName(options.InstalledName):
    """A tier or a model."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete it from the tiers and the installed models."""
        return options.complete_tier(ctx, param, incomplete) + super().shell_complete(ctx, param, incomplete)


@click.command()
@click.argument("target", metavar="TARGET", type=TargetName(), required=False)
@click.option("--save", is_flag=True, help="Save the result; it improves predictions for this machine.")
@click.option("--quant", metavar="NAME", help="Which installed quant to use.")
@click.option(
    "--runs", type=click.IntRange(1, 20), default=3, show_default=True, metavar="N", help="Number of timed runs."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(64, 131072),
    metavar="N",
    help="Approximate prompt length.  [default: 1024; 128 without a GPU]",
)
@click.option(
    "--gen-tokens",
    type=click.IntRange(16, 4096),
    metavar="N",
    help="Maximum answer length.  [default: 128; 32 without a GPU]",
)
@click.option(
    "--concurrency", type=Counts(), default="1", show_default=True, metavar="N,…", help="Number of concurrent requests."
)
@click.option("--history", type=TargetName(), metavar="MODEL", help="Show saved results of MODEL; measure nothing.")
@click.option(
    "--tune/--no-tune",
    default=None,
    help="Find what makes answers faster, and keep it; --no-tune drops it.",
)
@options.timeout
@options.as_json
def command(
    target: str | None,
    *,
    save: bool,
    tune: bool | None,
    quant: str | None,
    history: str | None,
    timeout_s: float | None,
    as_json: bool,
    **shape: Any,
) -> None:
    """Benchmark a running tier or an installed model.

    TARGET is a running tier, or a model, which then gets an engine of its own. Every prompt is new, so that no cache
    helps. --tune tries draft heads, prompt lookup and a quantized cache where engine and model support them, and keeps
    the one that is at least 10 % faster with the same greedy answers.
    """
    home = get_home()
    if (target is None) == (history is None):
        raise UsageProblem("Name a TARGET to benchmark, or pass --history MODEL.", hint="mlxq bench --help")
    if history is not None:
        _history(home, history, as_json=as_json)
        return
    with jobs_client.reading(home) as db:
        target_of_job = subject(home, db, str(target), quant)
    if tune is not None:
        _tune(target_of_job, timeout_s, on=tune, as_json=as_json)
        return
    result = _run({"target": target_of_job, "save": save, **shape}, timeout_s)
    if as_json:
        render.data(result)
        return
    show(result)
    if not result["saved"]:
        render.next_step(f"mlxq bench {target} --save")


def _run(args: Mapping[str, Any], timeout_s: float | None) -> Any:
    """Run the job and return its result. Raises its error."""
    home = get_home()
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, [kinds.new("bench", args)])
    (job,) = jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    assert job.state is JobState.SUCCEEDED, "follow raises what failed"
    return job.result


def _tune(target: str, timeout_s: float | None, *, on: bool, as_json: bool) -> None:
    """Run the job that tunes, or takes back what was tuned, and show what came of it. Raises its error."""
    home = get_home()
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, [kinds.new("tune" if on else "untune", {"target": target})])
    view = job_view.view(as_json=as_json)
    ended = jobs_client.follow(home, jobs_client.with_chains(ids), view, timeout_s=timeout_s)
    result: Mapping[str, Any] = [job.result for job in ended if job.kind in {"tune", "untune"}][-1]
    if as_json:
        render.data(result)
    elif on:
        _show_tuned(result)
    else:
        render.say(f"{units.listed(result['names']) or 'No tuning'} was used; none is now.")


def _show_tuned(result: Mapping[str, Any]) -> None:
    """Print what was tried and what is used."""
    if not result["tried"]:
        click.echo(f"{result['release']} offers nothing to try with this model.")
        return
    render.table(
        ["TUNING", "NEW TEXT", "EDIT", "TIMES AS FAST", "RESULT"],
        [_tried(row, result["used"]) for row in result["tried"]],
        right=(1, 2, 3),
    )
    click.echo()
    if result["used"]:
        render.say(f"{result['release']} answers with {result['used']} now, {result['gain']:.2f} times as fast.")
    else:
        render.say(f"{result['release']} stays as it is: nothing is a tenth faster with the same answers.")


def _tried(row: Mapping[str, Any], used: str | None) -> list[str]:
    """Return the cells of one tuning; speeds in tokens/s."""
    new_text, edit = [recommendation.brief(speed) for speed in row["decode_tps"]] or ["-", "-"]
    gain = "-" if row["gain"] is None else f"{row['gain']:.2f}"
    return [row["tuning"], new_text, edit, gain, "used" if row["tuning"] == used else row["objection"] or "-"]


def subject(home: Home, db: Database, target: str, quant: str | None) -> str:
    """Return the tier's name, or the folder of the weights. Raises NotFound, NotSetUp."""
    if target in TIERS or target in {tier.name for tier in stack.tiers(db)}:
        return stack.tier(db, target).name
    models = recommend.all_models(home)
    chosen = local_models.choose(target, local_models.listing(home, db, models), models, quant)
    complete = [row for row in chosen if row.state in {"valid", "loadable"}]
    if not complete:
        raise NotFound(f"The weights of {target} are {chosen[0].state}.", hint=f"mlxq verify {shlex.quote(target)}")
    return str(max(complete, key=lambda row: row.pulled).folder)


def show(result: Mapping[str, Any]) -> None:
    """Print what a benchmark found."""
    click.echo(f"{result['model']} {result['quant']}, {result['engine']}, mlx {result['mlx']}\n")
    render.table(
        ["CONCURRENT", "INPUT", "TTFT", "INPUT/S", "TOK/S", "TOTAL TOK/S"],
        [_round(row) for row in result["rounds"]],
        right=(0, 1, 2, 3, 4, 5),
    )
    tools = {None: "not tested", True: "called correctly", False: "not called, or not parsed"}[result["tools"]]
    click.echo(f"\nPeak memory {units.memory(result['peak_bytes'])}. Tools: {tools}.")
    click.echo(f"A second turn read {1 - result['reused']:.0%} of the first one again.")
    if expected := result["predicted"]:
        decode, prompt = recommendation.brief(expected["decode"]), recommendation.brief(expected["prompt"])
        click.echo(
            f"{result['verdict']}: {MEANINGS[result['verdict']]} "
            f"({decode} tokens/s, input at {prompt}/s; {expected['basis']})."
        )


def _round(result: Mapping[str, Any]) -> list[str | int]:
    low, high = recommendation.brief(result["decode_low"]), recommendation.brief(result["decode_high"])
    return [
        result["concurrency"],
        result["prompt_tokens"],
        f"{result['ttft_s']:.2f}s",
        recommendation.brief(result["prompt_tps"]),
        f"{recommendation.brief(result['decode_tps'])} ({low}-{high})",
        recommendation.brief(result["total_tps"]),
    ]


def _history(home: Home, name: str, *, as_json: bool) -> None:
    """Show the benchmarks kept of a model, with what got slower. Raises NotFound."""
    with jobs_client.reading(home) as db:
        tiers = {tier.name: tier.model for tier in stack.tiers(db)}
        model = tiers.get(name) or _known_as(home, db, name)
        rows = kept.history(db, model, facts.get(db, "machine").get("chip", ""))
    if not rows:
        raise NotFound(f"There are no saved benchmarks of {model} on this machine.", hint=f"mlxq bench {name} --save")
    slower = regressions(rows)
    if as_json:
        results = [asdict(row) | {"regression": slower.get(number)} for number, row in enumerate(rows)]
        render.data({"model": model, "benches": results})
        return
    for line in plot(rows, slower):
        click.echo(line)


def _known_as(home: Home, db: Database, name: str) -> str:
    """Return the name a model has in the benchmarks: its id, else where it came from. Raises NotFound."""
    models = recommend.all_models(home)
    for row in local_models.listing(home, db, models):
        if row.model not in models and name in {row.model, row.folder.name, row.source}:
            return row.source or f"file:{row.folder}"
    if "/" in name and name not in {quant.repo for model in models.values() for quant in model.quants.values()}:
        return f"hub:{name.removeprefix('hub:')}"
    return recommend.find(name, models).model.id


def plot(rows: Sequence[Bench], slower: Mapping[int, str]) -> list[str]:
    """Draw a bar of the decode speed for each benchmark, the oldest first; within 80 columns but for the flags."""
    fastest = max(row.decode_tps for row in rows)
    lines: list[str] = []
    for number, row in enumerate(rows):
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.at))
        bar = "█" * max(1, round(BAR * row.decode_tps / fastest))
        label = f"{row.quant} x{row.concurrency}"
        line = f"{day}  {row.engine}/{row.mlx}  {label:<8} {bar:<{BAR}} {recommendation.brief(row.decode_tps)} tok/s"
        lines += [line, *([f"  ! {slower[number]}"] if number in slower else [])]
    return lines
