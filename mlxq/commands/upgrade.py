"""`mlxq upgrade`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlxq import __version__, confirm, job_view, jobs_client, options, render
from state import files, wakeup
from state.errors import Busy, NotSetUp, TimedOut
from state.job import get
from state.paths import Home, get_home
from tasks import kinds

if TYPE_CHECKING:
    from tasks.upgrade.record import Record

BACK_S = 180.0
"""Seconds that the way back may take: workers end within 20 s, and launchd takes up to 15 s to start one."""


@click.command()
@click.option("--check", is_flag=True, help="Show whether there is a newer version; change nothing.")
@click.option("--to", metavar="VERSION", help="This version.  [default: the newest]")
@click.option("--back", is_flag=True, help="Go back to the version before the latest upgrade.")
@options.yes
@options.timeout
@options.as_json
def command(*, check: bool, to: str | None, back: bool, yes: bool, timeout_s: float | None, as_json: bool) -> None:
    """Upgrade mlxq without interrupting requests.

    The new version is installed next to this one and answers a prompt on a copy of your data before it is used. Then
    the worker, the gateway and, where something in them changed, the engines are replaced one after another. If one of
    them does not come up, this version takes over again by itself.
    """
    if check + back + (to is not None) > 1:
        raise click.UsageError("--check, --to and --back exclude each other.")
    home = get_home()
    if check:
        _check(as_json=as_json)
    elif back:
        _go_back(home, yes=yes, as_json=as_json)
    else:
        _upgrade(home, to, timeout_s, as_json=as_json)


def _check(*, as_json: bool) -> None:
    from tasks.upgrade import installation, newer, packages

    newest = packages.find().version
    is_newer = newer.follows(newest, __version__)
    by_others = installation.UPGRADED.get(installation.current().method)
    if as_json:
        render.data({"version": __version__, "newest": newest, "newer": is_newer})
    elif is_newer:
        render.say(f"mlxq {newest} can be installed; this is {__version__}.")
        render.next_step(by_others or "mlxq upgrade")
    else:
        render.say(f"mlxq {__version__} is the newest version.")


def _upgrade(home: Home, to: str | None, timeout_s: float | None, *, as_json: bool) -> None:
    from tasks.upgrade import installation, packages

    packages.require_version(to)
    installation.require_upgradable()
    with jobs_client.changing(home) as db:
        ids = jobs_client.enqueue(db, [kinds.new("upgrade", {"to": to})])
        if get(db, ids[0]).args.get("to") != to:
            raise Busy(f"Another upgrade is under way (job {ids[0]}).", hint=f"mlxq jobs watch {ids[0]}")
    ended = jobs_client.follow(home, jobs_client.these(ids), job_view.view(as_json=as_json), timeout_s=timeout_s)
    _tell(ended[0].result, as_json=as_json)


def _tell(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.line(result)
    elif not result["upgraded"]:
        render.say(f"mlxq {result['version']} is the newest version.")
    else:
        click.echo(f"mlxq {result['version']} serves now, in place of {result['before']}.")
        if result["backup"]:
            click.echo(f"state.db as {result['before']} wrote it: {result['backup']}")
        render.next_step("mlxq status")


def _go_back(home: Home, *, yes: bool, as_json: bool) -> None:
    """Take the latest upgrade back; what says how that went is upgrade.json, as state.db may become an older one."""
    import time

    from tasks.upgrade import back, switch
    from tasks.upgrade.record import BY_USER

    record = switch.require_way_back(home)
    if back.schema(home) > record.before.schema:
        _confirm_loss(home, record, yes=yes)
    if switch.is_used(record):
        with jobs_client.changing(home) as db:
            jobs_client.enqueue(db, [kinds.new("downgrade")])
    else:  # no worker can open state.db
        back.request(home, record, BY_USER, time.time())
    _tell_back(_await_back(home), as_json=as_json)


def _tell_back(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.line(result)
        return
    click.echo(f"mlxq {result['version']} serves again, in place of {result['before']}.")
    if result["backup"]:
        click.echo(f"state.db is as it was in {result['backup']}.")
    render.next_step("mlxq status")


def _confirm_loss(home: Home, record: Record, *, yes: bool) -> None:
    """Say what the way back costs where state.db becomes an older one, and ask."""
    copy = home.backup(record.before.schema)
    render.say(
        f"{record.after.version} changed state.db. mlxq {record.before.version} needs {copy}, from before the "
        "upgrade: jobs, usage and settings of tiers since then are lost. Models and keys are kept."
    )
    confirm.deletion(yes=yes)


def _await_back(home: Home) -> dict[str, Any]:
    """Wait until the version before serves. Raises TimedOut, NotSetUp."""
    import time

    from tasks.upgrade import back, switch
    from tasks.upgrade import record as records
    from tasks.upgrade.record import Phase

    until = time.monotonic() + BACK_S
    with wakeup.watcher(home) as listener:
        while time.monotonic() < until:
            record = records.read(home)
            if record is None:
                raise NotSetUp("There is no upgrade to take back.", hint="mlxq upgrade --check")
            back.ensure_guard(home, record)
            if record.phase == Phase.DONE:
                jobs_client.ensure_worker(home)
            elif record.phase == Phase.TAKEN_BACK and files.locked(home.worker_lock):
                return switch.way_back(record)
            listener.wait(jobs_client.GUARD_S)
    raise TimedOut(f"The version before did not serve within {BACK_S:.0f} s.", hint="mlxq logs upgrade")
