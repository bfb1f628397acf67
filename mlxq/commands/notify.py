"""`mlxq notify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from mlxq import job_view, jobs_client, options, render
from state import job, ledger
from state.db import Database
from state.errors import Busy, NotFound, UsageProblem
from state.notify import notices, targets
from state.notify.targets import KINDS, WITH_URL, NotifyTarget
from state.paths import Home, get_home
from tasks import kinds


class NotifyName(click.ParamType[str]):
    """The name of a notification target."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the file of targets."""
        return [CompletionItem(name) for name in targets.read(targets.file(get_home())) if name.startswith(incomplete)]


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Send a message when something needs attention.

    There is one message for each change: a tier in a crash loop or that cannot start, healthy again, an unclean
    shutdown, a disk nearly full, the cloud's cap reached, an engine or an upgrade of mlxq rolled back, a scheduled job
    that failed. Changes within ten seconds are combined; during the setting `quiet-hours` messages wait.
    """


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("address", nargs=-1, metavar="[URL|PROGRAM [ARGUMENT]...]")
@click.option("--secret-stdin", is_flag=True, help="Read the webhook's secret or ntfy's token from standard input.")
@click.option("--always", is_flag=True, help="Deliver during quiet hours, too.")
def add(name: str, kind: Any, address: Sequence[str], *, secret_stdin: bool, always: bool) -> None:
    """Add the target NAME.

    \b
    webhook   POST a signed JSON document to URL (standardwebhooks.com)
    ntfy      publish to URL, a topic such as https://ntfy.sh/my-topic
    command   run PROGRAM; it gets the JSON document on its standard input
    macos     show a notification on this Mac
    deadman   request URL every minute while everything that should run serves

    With `-` as URL, read it from standard input, which keeps it out of the shell history. A webhook gets a new secret,
    printed once, unless --secret-stdin is given.
    """  # noqa: D301 (click's mark)
    home = get_home().make()
    target = _target(name, kind, address, secret_stdin=secret_stdin, always=always)
    targets.check(target)
    with jobs_client.writing(home) as db:
        targets.add(targets.file(home), target)
        notices.begin(db, name)
    if kind == "webhook" and not secret_stdin:
        click.echo(target.secret)
        render.say("The receiver checks signatures with this secret. Store it now; it cannot be shown again.")
    render.next_step(f"mlxq notify test {name}")


def _target(name: str, kind: Any, address: Sequence[str], *, secret_stdin: bool, always: bool) -> NotifyTarget:
    """Return the target that the words describe. Raises UsageProblem."""
    if kind in WITH_URL and len(address) != 1:
        raise UsageProblem(f"A target of the kind {kind} takes one URL.", hint="mlxq notify add --help")
    if kind == "macos" and address:
        raise UsageProblem("A target of the kind macos takes no address.", hint=f"mlxq notify add {name} macos")
    if secret_stdin and kind not in {"webhook", "ntfy"}:
        raise UsageProblem("Only webhooks and ntfy have a secret.", hint=f"mlxq notify add {name} {kind}")
    url = _line() if tuple(address) == ("-",) and kind in WITH_URL else "".join(address[:1])
    secret = _line() if secret_stdin else targets.generate_secret() if kind == "webhook" else ""
    if kind == "command":
        return NotifyTarget(name, kind, argv=_program(address), always=always)
    return NotifyTarget(name, kind, url, secret=secret, always=always)


def _line() -> str:
    """Return the next line of standard input."""
    return sys.stdin.readline().strip()


def _program(words: Sequence[str]) -> tuple[str, ...]:
    """Return a command with the path of its program, as the worker may have another PATH. Raises NotFound."""
    import shutil
    from pathlib import Path

    if not words:
        return ()
    path = shutil.which(words[0])
    if path is None:
        raise NotFound(f"There is no program {words[0]}.", hint="mlxq notify add --help")
    return (str(Path(path).absolute()), *words[1:])


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List targets, without secrets or full URLs."""
    home = get_home()
    rows = _rows(home, list(targets.read(targets.file(home)).values()))
    if as_json:
        render.data({"targets": rows})
    elif rows:
        render.table(
            ["NAME", "KIND", "QUIET HOURS", "DELIVERED", "TARGET", "PROBLEM"],
            [
                [row["name"], row["kind"], _quiet(row), _ago(row["delivered_at"]), row["target"], row["problem"]]
                for row in rows
            ],
        )
    else:
        render.say("There are no notification targets yet.")
        render.next_step("mlxq notify add --help")


def _rows(home: Home, saved: Sequence[NotifyTarget]) -> list[dict[str, Any]]:
    if not saved:
        return []
    with jobs_client.reading(home) as db:
        return [
            {
                "name": target.name,
                "kind": target.kind,
                "target": target.shown,
                "always": target.always,
                "delivered_at": notices.delivered_at(db, target.name),
                "waiting": len(notices.pending(db, target.name)) if target.kind != "deadman" else 0,
                "problem": _problem(db, target.name),
            }
            for target in saved
        ]


def _problem(db: Database, name: str) -> str | None:
    """Return why the newest delivery to a target did not succeed; None where it did."""
    return db.value(
        "SELECT error FROM jobs WHERE kind IN ('notify', 'notify_test') AND json_extract(args, '$.target') = ?"
        " ORDER BY id DESC LIMIT 1",
        (name,),
    )


def _quiet(row: dict[str, Any]) -> str | None:
    return None if row["kind"] == "deadman" else "delivered" if row["always"] else "wait"


def _ago(at: float | None) -> str | None:
    return None if at is None else render.ago(at)


@command.command()
@click.argument("name", type=NotifyName())
def remove(name: str) -> None:
    """Remove the target NAME and its pending messages."""
    home = get_home()
    targets.remove(targets.file(home), name)
    with jobs_client.writing(home) as db:
        notices.forget(db, name)
        _cancel(db, name)
    render.say(f"Target {name} removed.")


def _cancel(db: Database, name: str) -> None:
    """Cancel the deliveries to a target that wait or run."""
    for kind in ("notify", "notify_test"):
        for row in job.listing(db, kind=kind):
            if row.live and row.args.get("target") == name:
                try:
                    ledger.cancel(db, row.id)
                except Busy:  # it ended meanwhile
                    continue


@command.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, type=NotifyName())
@options.timeout
def test(names: Sequence[str], *, timeout_s: float | None) -> None:
    """Send a test message to NAME, or to every target.

    Waits until it is delivered.
    """
    home = get_home()
    saved = targets.read(targets.file(home))
    if not saved:
        raise NotFound("There are no notification targets.", hint="mlxq notify add --help")
    chosen = [targets.find(targets.file(home), name).name for name in names] or list(saved)
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(
            db, [kinds.new("notify_test", {"target": name}, label=f"notify_test {name}") for name in chosen]
        )
    jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    render.say(f"Delivered to {', '.join(chosen)}.")
