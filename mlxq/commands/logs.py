"""`mlxq logs`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import IO

import click
from click.shell_completion import CompletionItem

from catalog import units
from mlxq import job_view, jobs_client, render
from state.errors import NotFound, NotSetUp, UsageProblem
from state.paths import Home, get_home
from tasks import kinds

CHUNK = 2**16
WORKER = "worker"
"""The name of the worker's own log."""
LOOK_S = 0.25
"""How often --follow looks for more."""


class LogName(click.ParamType[str]):
    """The name of a log: a service, or the worker."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the logs there are."""
        return [CompletionItem(name) for name in names(get_home()) if name.startswith(incomplete)]


@click.command()
@click.argument("name", type=LogName(), required=False)
@click.option("-n", "--tail", "count", type=click.IntRange(min=0), default=50, show_default=True, help="So many lines.")
@click.option("--all", "everything", is_flag=True, help="Begin with the rotated logs, the oldest first.")
@click.option("--service", is_flag=True, help="The log of the worker, which watches over the services.")
@click.option("--rotate", is_flag=True, help="Rotate it now, or without NAME whatever is too big.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
def command(name: str | None, count: int, *, everything: bool, service: bool, rotate: bool, follow: bool) -> None:
    """Print the log of a service, or of the worker.

    Without NAME: list the logs there are.
    """
    place = get_home()
    if service and name not in {None, WORKER}:
        raise UsageProblem(f"--service is the log of the worker, and {name} another one.", hint=f"mlxq logs {name}")
    name = WORKER if service else name
    if name:
        find(place, name)
    if rotate:
        _rotate(place, name)
    elif name is None:
        _list(place)
    elif everything:
        _print_all(place.log(name))
    else:
        _print(place.log(name), count, follow=follow)


def _rotate(place: Home, name: str | None) -> None:
    with jobs_client.writing(place) as db:
        ids = jobs_client.enqueue(db, [kinds.new("rotate", {"name": name})])
    (done,) = jobs_client.follow(place, jobs_client.these(ids), job_view.view())
    moved: dict[str, int] = done.result["rotated"]
    for log, size in moved.items():
        click.echo(f"Rotated {log}: {units.files(size)}.")
    if not moved:
        click.echo("No log is too big.")


def _print_all(log: Path) -> None:
    import gzip
    import shutil

    from tasks.system.log_rotation import archives

    for archive in reversed(archives(log)):
        with gzip.open(archive) as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    with log.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


def _print(log: Path, count: int, *, follow: bool) -> None:
    with log.open("rb") as file:
        _seek_back(file, count)
        while True:
            click.echo(file.read().decode(errors="replace"), nl=False)
            if not follow:
                return
            time.sleep(LOOK_S)
            if log.stat().st_size < file.tell():  # it was rotated
                file.seek(0)


def _seek_back(file: IO[bytes], count: int) -> None:
    """Go to where the last `count` lines begin, reading little more of the file than those."""
    end = file.seek(0, os.SEEK_END)
    size, tail = CHUNK, b""
    while len(tail) < end and tail.count(b"\n") <= count:
        file.seek(max(0, end - size))
        tail = file.read(size)
        size *= 2
    last = tail.splitlines(keepends=True)[-count:] if count else []
    file.seek(end - sum(map(len, last)))


def names(place: Home) -> list[str]:
    """Give the names of the logs there are."""
    return sorted(path.stem for path in place.logs.glob("*.log"))


def find(place: Home, name: str) -> Path:
    """Give the log of that name. Raises NotFound with the names there are, NotSetUp; a name is never a path."""
    there = _there(place)
    if name not in there:
        raise NotFound(f"There is no log {name!r}; there is: {', '.join(there)}.", hint="mlxq logs")
    return place.log(name)


def _there(place: Home) -> list[str]:
    """Give the names of the logs there are. Raises NotSetUp when there is none."""
    if there := names(place):
        return there
    raise NotSetUp(f"There are no logs in {place.root} yet.", hint="mlxq setup")


def _list(place: Home) -> None:
    there = _there(place)
    found = [(name, place.log(name).stat()) for name in there]
    render.table(
        ["LOG", "SIZE", "WRITTEN"],
        [[name, units.files(each.st_size), render.ago(each.st_mtime)] for name, each in found],
        right=(1,),
    )
    render.next_step(f"mlxq logs {there[0]} -f")
