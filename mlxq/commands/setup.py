"""`mlxq setup`."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from catalog.intent import INTENTS
from mlxq import job_view, jobs_client, options, render
from mlxq.commands import status
from mlxq.job_view import title
from mlxq.jobs_client import View
from mlxq.setup import edit
from mlxq.setup.edit import EditPlan, StackChange
from state import settings
from state.db import Database
from state.errors import NotSetUp, UsageProblem
from state.job import Job, JobState, NewJob
from state.paths import Home, get_home
from tasks import kinds

RUNNING_SETUP = """
SELECT min(chain) FROM jobs WHERE state IN ('blocked', 'queued', 'running')
AND chain IN (SELECT chain FROM jobs WHERE kind = 'score')
"""


@click.command()
@click.option("--accept-defaults", "--yes", "-y", "yes", is_flag=True, help="Ask nothing.")
@click.option("--no-input", is_flag=True, help="Fail where a question would be asked.")
@click.option("--dry-run", "-n", is_flag=True, help="Show what it would do now, and change nothing.")
@click.option("--intent", type=click.Choice(list(INTENTS)), help="What the models are for.  [default: balanced]")
@click.option(
    "--budget-pct",
    type=click.IntRange(10, 90),
    metavar="10-90",
    help="Share of the memory that the models may use, in per cent.  [default: setting memory-budget-pct]",
)
@click.option("--no-pull", is_flag=True, help="Choose models and stop; implies --no-start.")
@click.option("--no-start", is_flag=True, help="Choose and pull models, start nothing.")
@click.option("--model", "alone", metavar="MODEL", type=options.ModelName(), help="Serve this model alone.")
@click.option("--add", multiple=True, metavar="MODEL", type=options.ModelName(), help="Give MODEL a tier of its own.")
@click.option("--as", "names", multiple=True, metavar="TIER", help="What the tier of --add is called.")
@options.tiers("--remove", "Take TIER away; its weights stay.")
@options.timeout
@options.as_json
def command(
    *,
    yes: bool,
    no_input: bool,
    dry_run: bool,
    intent: str | None,
    budget_pct: int | None,
    no_pull: bool,
    no_start: bool,
    alone: str | None,
    add: tuple[str, ...],
    names: tuple[str, ...],
    remove: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Choose models for this machine and bring them up.

    On a terminal it shows the machine and what fits it, and takes changes. Safe to run again: what is there already is
    neither pulled nor restarted. --add, --remove and --model change the stack that is there. With --json: a line of
    JSON at each change of a job, and at the end one line with what `status --json` prints.
    """
    place, consent = get_home(), Consent(yes=yes, no_input=no_input)
    settings.load(place)
    wanted = edit.parse(add, names, remove, alone)
    asked = question(intent, budget_pct, no_pull=no_pull, no_start=no_start)
    if wanted and asked != question(None, None, no_pull=False, no_start=False):
        raise UsageProblem("--add, --remove and --model go with none of --intent, --budget-pct, --no-pull, --no-start.")
    if wanted:
        chain = _change(place, wanted, consent, dry_run=dry_run, as_json=as_json)
    elif dry_run:
        chain = preview(place, asked, as_json=as_json)
    else:
        chain = _set_up(place, asked, consent, intent)
    if chain is None:
        return
    jobs_client.follow(place, jobs_client.chain(chain), Commented(job_view.view(as_json=as_json)), timeout_s=timeout_s)
    if as_json:
        render.line(status.draw_once(place).document())
    else:
        status.welcome(place)


class Consent:
    """What a person is asked, or has said already."""

    def __init__(self, *, yes: bool, no_input: bool) -> None:
        self.given = yes
        self._silent = no_input or not sys.stdin.isatty()

    def to(self, what: str) -> None:
        """Ask whether that may be done. Raises UsageProblem where nobody can answer, Abort for a no."""
        if not self.given:
            self.expect_answer("the same command with --yes")
            click.confirm(what, default=True, abort=True, err=True)

    def expect_answer(self, hint: str) -> None:
        """Raise UsageProblem where nobody can answer."""
        if self._silent:
            raise UsageProblem("setup asks questions, and here is nobody to answer.", hint=hint)


def _set_up(place: Home, asked: dict[str, Any], consent: Consent, intent: str | None) -> int:
    """Begin the whole set-up, or find the one that is under way; give the chain."""
    if not consent.given:
        consent.expect_answer("mlxq setup --accept-defaults")
    render.say(f"Setting up in {place.root}.")
    running = _under_way(place)
    if running is not None:
        render.say(f"A setup is already under way (job {running}); following that one.")
        return running
    if not consent.given:
        with unchanged():
            asked = _guided(place, asked, intent)
    with jobs_client.writing(place) as db:
        return begin(db, [kinds.new("detect"), kinds.new("score", asked, needs=["detect"])])


def _guided(place: Home, asked: dict[str, Any], intent: str | None) -> dict[str, Any]:
    """Ask a person for all that is open; give the arguments of the task score."""
    from mlxq.setup import inspection, wizard

    render.say("Looking at this machine.")
    return wizard.settle(inspection.inspect(place), asked, intent=intent)


@contextmanager
def unchanged() -> Generator[None]:
    """Say to whoever leaves, by Ctrl-C or by an answer, that nothing was done. Raises Exit with 130."""
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        render.say("\nStopped. Nothing was changed.")
        render.next_step("mlxq setup")
        raise click.exceptions.Exit(jobs_client.INTERRUPTED) from None


def _under_way(place: Home) -> int | None:
    """Give the chain of the set-up that is under way."""
    try:
        with jobs_client.reading(place) as db:
            return db.value(RUNNING_SETUP)
    except NotSetUp:
        return None


def _change(place: Home, wanted: StackChange, consent: Consent, *, dry_run: bool, as_json: bool) -> int | None:
    """Show a change, ask, and begin it; give the chain, None when it was only shown."""
    made = _planned(place, wanted)
    if as_json and dry_run:
        render.data(made.document())
        return None
    edit.show(made, err=as_json)
    if dry_run:
        return None
    with unchanged():
        consent.to("Make this change")
    with jobs_client.writing(place) as db:
        ids = edit.begin(db, made, wanted)
        return db.value("SELECT chain FROM jobs WHERE id = ?", (ids[-1],))


def _planned(place: Home, wanted: StackChange) -> EditPlan:
    """Work a change out, and write nothing. Raises as change.plan does."""
    try:
        with jobs_client.reading(place) as db:
            return edit.plan(db, place, wanted)
    except NotSetUp:
        return edit.plan(None, place, wanted)


def preview(place: Home, asked: dict[str, Any], *, as_json: bool) -> None:
    """Show what the same command would do without --dry-run. Raises DoesNotFit."""
    from mlxq.setup import inspection
    from mlxq.setup import preview as outlook

    running = _under_way(place)
    if running is not None:
        render.say(f"A setup is under way (job {running}); without --dry-run that one is followed.")
    found = inspection.inspect(place)
    if as_json:
        render.data(outlook.document(found, asked))
    else:
        outlook.show(found, asked)
    outlook.require_room(found, asked)


def question(intent: str | None, budget_pct: int | None, *, no_pull: bool, no_start: bool) -> dict[str, Any]:
    """Give the arguments of the task score."""
    asked: dict[str, Any] = {"pull": not no_pull, "start": not (no_pull or no_start)}
    said = {"intent": intent, "budget_pct": budget_pct}
    return asked | {name: value for name, value in said.items() if value is not None}


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
    done = {title(job): job for job in jobs if job.state is JobState.SUCCEEDED}
    score = done.get("score")
    said = [chosen(score.result)] if score and "choice" not in score.args else []
    if {"start fast", "start gateway"} <= done.keys() and any(job.live and job.kind != "smoke_test" for job in jobs):
        said.append('The tier fast can be used already: mlxq chat --tier fast "…"')
    return said


def chosen(result: Mapping[str, Any]) -> str:
    """Say what the task score came to."""
    why = result.get("explain", "").partition("\n")[0]
    tiers = "".join(f"\n  {name:<10} {model}" for name, model in result["tiers"].items())
    return f"{why} {'Kept' if result['kept'] else 'Chosen'}:{tiers}".lstrip()


def begin(db: Database, batch: list[NewJob]) -> int:
    """Put the chain in, unless one is under way: then that one is followed. Gives the chain's number."""
    with db.transaction():
        running = db.value(RUNNING_SETUP)
        if running is not None:
            render.say(f"Another setup began meanwhile (job {running}); following that one, with its choice of models.")
            return running
        ids = jobs_client.enqueue(db, batch)
    return db.value("SELECT chain FROM jobs WHERE id = ?", (ids[-1],))
