"""`mlxq setup`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from mlxq import ask, options, render, watch
from mlxq.ask import View
from mlxq.commands import status
from mlxq.watch import title
from state import settings
from state.db import Database
from state.errors import UsageProblem
from state.job import Job, New, State
from state.paths import home
from tasks import kinds

INTENTS = ("balanced", "agent-fleet")
RUNNING_SETUP = """
SELECT min(chain) FROM jobs WHERE state IN ('blocked', 'queued', 'running')
AND chain IN (SELECT chain FROM jobs WHERE kind = 'score')
"""


@click.command()
@click.option("--accept-defaults", is_flag=True, help="Ask nothing.")
@click.option("--intent", type=click.Choice(INTENTS), help="What the models are for.  [default: balanced]")
@click.option(
    "--budget-pct",
    type=click.IntRange(10, 90),
    metavar="10-90",
    help="Share of the memory that the models may use, in per cent.  [default: setting memory-budget-pct]",
)
@click.option("--no-pull", is_flag=True, help="Choose models and stop; implies --no-start.")
@click.option("--no-start", is_flag=True, help="Choose and pull models, start nothing.")
@options.timeout
def command(
    *,
    accept_defaults: bool,
    intent: str | None,
    budget_pct: int | None,
    no_pull: bool,
    no_start: bool,
    timeout_s: float | None,
) -> None:
    """Choose models for this machine and bring them up.

    Safe to run again: what is there already is neither pulled nor restarted.
    """
    if not accept_defaults:
        intent = _ask_person(intent)
    asked = question(intent, budget_pct, no_pull=no_pull, no_start=no_start)
    place = home()
    settings.load(place)
    render.say(f"Setting up in {place.root}.")
    with ask.writing(place) as db:
        chain = begin(db, [kinds.new("detect"), kinds.new("score", asked, needs=["detect"])])
    ask.follow(place, ask.chain(chain), Commented(watch.view()), timeout_s=timeout_s)
    status.welcome(place)


def question(intent: str | None, budget_pct: int | None, *, no_pull: bool, no_start: bool) -> dict[str, Any]:
    """Give the arguments of the task score."""
    asked = {"intent": intent or INTENTS[0], "pull": not no_pull, "start": not (no_pull or no_start)}
    return asked if budget_pct is None else asked | {"budget_pct": budget_pct}


class Commented:
    """Any view of the jobs, with a word from setup where a person would want one."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._said: set[str] = set()
        self.tell = view.tell
        self.close = view.close

    def show(self, jobs: Sequence[Job]) -> None:
        """Show the jobs, and say what their results mean."""
        self._view.show(jobs)
        for words in remarks(jobs):
            if words not in self._said:
                self._said.add(words)
                self.tell(words)


def remarks(jobs: Sequence[Job]) -> list[str]:
    """Give what is worth a sentence: which models were chosen, and that a tier answers before all is done."""
    done = {title(job): job for job in jobs if job.state is State.SUCCEEDED}
    said: list[str] = []
    if chosen := done.get("score"):
        tiers = "".join(f"\n  {name:<10} {model}" for name, model in chosen.result["tiers"].items())
        said.append(f"{chosen.result['explain']} {'Kept' if chosen.result['kept'] else 'Chosen'}:{tiers}")
    if {"start fast", "start gateway"} <= done.keys() and any(job.live and job.kind != "verify" for job in jobs):
        said.append('The tier fast can be used already: mlxq chat --tier fast "…"')
    return said


def begin(db: Database, batch: list[New]) -> int:
    """Put the chain in, unless one is under way: then that one is followed. Gives the chain's number."""
    with db.transaction():
        running = db.value(RUNNING_SETUP)
        if running is not None:
            render.say(f"A setup is already under way (job {running}); following that one.")
            return running
        ids = ask.put(db, batch)
    return db.value("SELECT chain FROM jobs WHERE id = ?", (ids[-1],))


def _ask_person(intent: str | None) -> str:
    """Ask what was not said. Raises UsageProblem where nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageProblem("setup asks questions, and here is nobody to answer.", hint="mlxq setup --accept-defaults")
    chosen = intent or click.prompt("What are the models for", type=click.Choice(INTENTS), default=INTENTS[0], err=True)
    click.confirm("Choose the models for this machine, fetch and start them", default=True, abort=True, err=True)
    return chosen
