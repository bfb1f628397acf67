"""`mlxq setup`."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from catalog.intent import INTENTS
from mlxq import job_view, jobs_client, local_models, options, render
from mlxq.commands import status
from mlxq.job_view import title
from mlxq.jobs_client import View
from mlxq.setup import edit, engines
from mlxq.setup.edit import EditPlan, StackChange
from state import ledger, settings
from state.db import Database
from state.errors import NotSetUp, UsageProblem
from state.job import Job, JobState, NewJob, get, of_chain
from state.paths import Home, get_home
from state.stack import Purpose
from tasks import kinds
from tasks.plan.retrieval import PURPOSES
from tasks.plan.serving_options import ServingOptions

RUNNING_SETUP = """
SELECT min(chain) FROM jobs WHERE state IN ('blocked', 'queued', 'running')
AND chain IN (SELECT chain FROM jobs WHERE kind = 'score')
"""


@click.command()
@click.option("--accept-defaults", "--yes", "-y", "yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--no-input", is_flag=True, help="Never prompt; fail instead.")
@options.dry_run
@click.option("--intent", type=click.Choice(list(INTENTS)), help="What the models are for.  [default: balanced]")
@click.option(
    "--budget-pct",
    type=click.IntRange(10, 90),
    metavar="N",
    help="Percentage of memory that models may use.  [default: setting memory-budget-pct]",
)
@click.option("--no-pull", is_flag=True, help="Only choose models; implies --no-start.")
@click.option("--no-engine", is_flag=True, help="Do not install another engine, even if a model needs it.")
@click.option("--no-start", is_flag=True, help="Choose and download models, but start nothing.")
@click.option("--model", "alone", metavar="MODEL", type=options.ModelName(), help="Serve only this model.")
@click.option("--add", multiple=True, metavar="MODEL", type=options.ModelName(), help="Add a tier that serves MODEL.")
@click.option("--as", "names", multiple=True, metavar="TIER", help="Name of the tier created by --add.")
@click.option("--tool-parser", metavar="NAME", help="Parser for the tool calls of the added model, or none.")
@click.option("--reasoning-parser", metavar="NAME", help="Parser for the thoughts of the added model, or none.")
@click.option("--context", type=click.IntRange(min=512), metavar="N", help="Window of the added model, in tokens.")
@options.tiers("--remove", "Remove TIER; keep its weights.")
@click.option("--embedding", metavar="MODEL", help="Serve embeddings with MODEL, or with none.")
@click.option("--rerank", metavar="MODEL", help="Serve reranking with MODEL, or with none.")
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
    no_engine: bool,
    alone: str | None,
    add: tuple[str, ...],
    names: tuple[str, ...],
    remove: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
    **named: Any,
) -> None:
    """Choose models for this machine, download and start them.

    On a terminal it shows the machine and the models that fit, and lets you change them. Safe to run again: installed
    models are not downloaded again and running services are not restarted. An engine that a model needs is installed
    too. --add, --remove and --model change the current stack; MODEL is a catalog id, a repository on the Hub, or a
    folder. --json prints a line of JSON for each change of a job, then the document of `status --json`.
    """
    home, consent = get_home(), Consent(yes=yes, no_input=no_input)
    _require_home(home)
    wanted = edit.parse(add, names, remove, alone, _serving(named))
    arguments = question(intent, budget_pct, no_pull=no_pull, no_start=no_start, no_engine=no_engine)
    beside: dict[Purpose, str] = {purpose: named[purpose] for purpose in PURPOSES if named[purpose]}
    if beside and not wanted and (_about_stack(arguments) or not jobs_client.has_stack(home)):
        arguments, beside = arguments | {"retrieval": beside}, {}
    if wanted or beside:
        _require_alone(arguments, changes=bool(wanted and beside))
        change = partial(_retrieve, home, beside) if beside else partial(_change, home, wanted)
        chain = change(consent, dry_run=dry_run, as_json=as_json)
    else:
        chain = preview(home, arguments, as_json=as_json) if dry_run else _set_up(home, arguments, consent, intent)
    if chain is not None:
        _follow(home, chain, timeout_s, as_json=as_json)


def _require_home(home: Home) -> None:
    """Raise where the settings cannot be read or the home cannot be written."""
    settings.load(home)
    local_models.require_writable(home)


def _serving(named: Mapping[str, Any]) -> ServingOptions:
    return ServingOptions(named["tool_parser"], named["reasoning_parser"], named["context"])


def _about_stack(arguments: Mapping[str, Any]) -> bool:
    """Return whether options ask for something of the whole stack."""
    return arguments != question(None, None, no_pull=False, no_start=False)


def _require_alone(arguments: Mapping[str, Any], *, changes: bool = False) -> None:
    """Refuse a change of single tiers together with a question about the whole stack. Raises UsageProblem.

    `changes`: whether tiers are changed beside an embedding or reranking model.
    """
    if changes:
        raise UsageProblem("--embedding and --rerank cannot be combined with --add, --remove or --model.")
    if _about_stack(arguments):
        raise UsageProblem(
            "--add, --remove and --model cannot be combined with --intent, --budget-pct, --no-pull, --no-engine or "
            "--no-start."
        )


def _follow(home: Home, chain: int, timeout_s: float | None, *, as_json: bool) -> None:
    """Show the chain until it ends, then the stack that it made."""
    jobs_client.follow(home, jobs_client.chain(chain), Commented(job_view.view(as_json=as_json)), timeout_s=timeout_s)
    if as_json:
        render.line(status.report(home).document())
    else:
        status.welcome(home)


class Consent:
    """Whether the user may be asked, or has confirmed already."""

    def __init__(self, *, yes: bool, no_input: bool) -> None:
        self.given = yes
        self._silent = no_input or not sys.stdin.isatty()

    def to(self, prompt: str) -> None:
        """Ask for confirmation. Raises UsageProblem where stdin is no terminal, Abort for a no."""
        if not self.given:
            self.expect_answer("the same command with --yes")
            click.confirm(prompt, default=True, abort=True, err=True)

    def expect_answer(self, hint: str) -> None:
        """Raise UsageProblem where stdin is no terminal, or --no-input was given."""
        if self._silent:
            raise UsageProblem("setup asks questions, but it may not prompt here.", hint=hint)


def _set_up(home: Home, arguments: dict[str, Any], consent: Consent, intent: str | None) -> int:
    """Start setup, or find the one that is running; return its chain."""
    if not consent.given:
        consent.expect_answer("mlxq setup --accept-defaults")
    render.say(f"Setting up in {home.root}.")
    running = _under_way(home, arguments)
    if running is not None:
        render.say(f"Setup is already running (job {running}); following it.")
        return running
    if not consent.given:
        with unchanged():
            arguments = _guided(home, arguments, intent)
    with jobs_client.writing(home) as db:
        return begin(db, [kinds.new("detect"), kinds.new("score", arguments, needs=["detect"])])


def _guided(home: Home, arguments: dict[str, Any], intent: str | None) -> dict[str, Any]:
    """Ask for what is not decided yet; return the arguments of the task score."""
    from mlxq.setup import inspection, wizard

    render.say("Inspecting this machine.")
    return wizard.settle(inspection.inspect(home, arguments), arguments, intent=intent)


@contextmanager
def unchanged() -> Generator[None]:
    """Say that nothing was changed when the user quits, by Ctrl-C or by an answer. Raises Exit with 130."""
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        render.say("\nStopped. Nothing was changed.")
        render.next_step("mlxq setup")
        raise click.exceptions.Exit(jobs_client.INTERRUPTED) from None


def _under_way(home: Home, arguments: Mapping[str, Any]) -> int | None:
    """Return the chain of the setup that is running, if it was asked for with these arguments."""
    try:
        with jobs_client.reading(home) as db:
            running: int | None = db.value(RUNNING_SETUP)
            return running if running is not None and _same(db, running, arguments) else None
    except NotSetUp:
        return None


def _change(home: Home, wanted: StackChange, consent: Consent, *, dry_run: bool, as_json: bool) -> int | None:
    """Show a change, ask, and start it; return the chain, None when it was only shown."""
    change = _planned(home, wanted)
    if as_json and dry_run:
        render.data(change.document())
        return None
    edit.show(change, err=as_json)
    if dry_run:
        return None
    with unchanged():
        consent.to("Make this change")
    with jobs_client.writing(home) as db:
        ids = edit.begin(db, change, wanted)
        return db.value("SELECT chain FROM jobs WHERE id = ?", (ids[-1],))


def _retrieve(
    home: Home, named: Mapping[Purpose, str], consent: Consent, *, dry_run: bool, as_json: bool
) -> int | None:
    """Show a change of the embedding or reranking model, ask, and start it; return the chain, None when only shown."""
    from mlxq.setup import retrieval

    with jobs_client.reading(home) as db:
        changes = retrieval.plan(db, home, named)
    if as_json and dry_run:
        render.data(retrieval.document(changes))
        return None
    retrieval.show(changes, err=as_json)
    if dry_run:
        return None
    with unchanged():
        consent.to("Make this change")
    with jobs_client.writing(home) as db:
        ids = retrieval.begin(db, changes)
        return db.value("SELECT chain FROM jobs WHERE id = ?", (ids[-1],))


def _planned(home: Home, wanted: StackChange) -> EditPlan:
    """Plan a change, and write nothing. Raises as edit.plan does."""
    try:
        with jobs_client.reading(home) as db:
            return edit.plan(db, home, wanted)
    except NotSetUp:
        return edit.plan(None, home, wanted)


def preview(home: Home, arguments: dict[str, Any], *, as_json: bool) -> None:
    """Show what the same command would do without --dry-run. Raises DoesNotFit."""
    from mlxq.setup import inspection
    from mlxq.setup import preview as outlook

    running = _under_way(home, arguments)
    if running is not None:
        render.say(f"Setup is already running (job {running}); without --dry-run, it would be followed.")
    report = inspection.inspect(home, arguments)
    if as_json:
        render.data(outlook.document(report, arguments))
    else:
        outlook.show(report, arguments)
    outlook.require_room(report, arguments)


def question(
    intent: str | None, budget_pct: int | None, *, no_pull: bool, no_start: bool, no_engine: bool = False
) -> dict[str, Any]:
    """Return the arguments of the task score."""
    arguments: dict[str, Any] = {"pull": not no_pull, "start": not (no_pull or no_start)}
    arguments |= {"engine": False} if no_engine else {}
    values = {"intent": intent, "budget_pct": budget_pct}
    return arguments | {name: value for name, value in values.items() if value is not None}


class Commented:
    """A view of the jobs that also prints what their results mean."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._printed: set[str] = set()
        self.tell = view.tell
        self.close = view.close

    def show(self, jobs: Sequence[Job]) -> None:
        """Show the jobs, and print what their results mean."""
        self._view.show(jobs)
        for words in remarks(jobs):
            if words not in self._printed:
                self._printed.add(words)
                self.tell(words)


def remarks(jobs: Sequence[Job]) -> list[str]:
    """Return what is worth a sentence: which models were chosen, and that a tier serves before all is done."""
    ended = [job for job in jobs if job.state is JobState.SUCCEEDED]
    done = {job.kind: job for job in ended}
    score = done.get("score")
    sentences = [chosen(score.result)] if score and "choice" not in score.args else []
    if score and (engine := score.result.get("engine")):
        sentences.append(engines.gain(engine))
    added = done.get("add_engine")
    if added and not added.result["installed"]:
        sentences.append(engines.loss(added.result["engine"], added.result["why"]))
    if {"start fast", "start gateway"} <= set(map(title, ended)) and any(
        job.live and job.kind != "smoke_test" for job in jobs
    ):
        sentences.append('The tier fast is ready: mlxq chat --tier fast "…"')
    return sentences


def chosen(result: Mapping[str, Any]) -> str:
    """Return what the task score chose."""
    explanation = result.get("explain", "").partition("\n")[0]
    tiers = "".join(f"\n  {name:<10} {model}" for name, model in result["tiers"].items())
    return f"{explanation} {'Kept' if result['kept'] else 'Chosen'}:{tiers}".lstrip()


def begin(db: Database, batch: list[NewJob]) -> int:
    """Enqueue the chain, and return its number. One that does the same is followed; one that does not is cancelled."""
    with db.transaction():
        running = db.value(RUNNING_SETUP)
        if running is not None and _same(db, running, batch[-1].args):
            render.say(f"The same setup is already running (job {running}); following it.")
            return running
        if running is not None:
            render.say(f"Cancelled the setup that was running (job {running}), which was asked for with other choices.")
            _cancel(db, running)
        ids = jobs_client.enqueue(db, batch)
    return db.value("SELECT chain FROM jobs WHERE id = ?", (ids[-1],))


def _same(db: Database, chain: int, arguments: Mapping[str, Any]) -> bool:
    """Return whether a setup that is running was asked for with these arguments of the task score."""
    score = next(job for job in of_chain(db, chain) if job.kind == "score")
    return all(score.args.get(name) == value for name, value in arguments.items())


def _cancel(db: Database, chain: int) -> None:
    """Cancel what is left of a chain; what it started stays as it is."""
    for job in reversed(of_chain(db, chain)):
        if job.live and get(db, job.id).live:
            ledger.cancel(db, job.id)
