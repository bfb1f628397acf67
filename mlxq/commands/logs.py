"""`mlxq logs`."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mlxq import render
from state.errors import NotFound, NotSetUp
from state.paths import Home, home

LOOK_S = 0.25
"""How often --follow looks for more."""


class Log(click.ParamType[str]):
    """The name of a log: a service, or the worker."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the logs there are."""
        return [CompletionItem(name) for name in names(home()) if name.startswith(incomplete)]


@click.command()
@click.argument("name", type=Log(), required=False)
@click.option("-n", "--tail", "count", type=click.IntRange(min=0), default=50, show_default=True, help="So many lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
def command(name: str | None, count: int, *, follow: bool) -> None:
    """Print the log of a service, or of the worker.

    Without NAME: list the logs there are.
    """
    place = home()
    if name is None:
        _list(place)
        return
    path = find(place, name)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, count):
            click.echo(line, nl=False)
        while follow:
            click.echo(file.read(), nl=False)
            time.sleep(LOOK_S)


def names(place: Home) -> list[str]:
    """Give the names of the logs there are."""
    return sorted(path.stem for path in place.logs.glob("*.log"))


def find(place: Home, name: str) -> Path:
    """Give the log of that name. Raises NotFound with the names there are; a name is never a path."""
    there = names(place)
    if name not in there:
        raise NotFound(f"There is no log {name!r}; there is: {', '.join(there) or 'none'}.", hint="mlxq logs")
    return place.log(name)


def _list(place: Home) -> None:
    there = names(place)
    if not there:
        raise NotSetUp(f"There are no logs in {place.root} yet.", hint="mlxq setup")
    found = [(name, place.log(name).stat()) for name in there]
    render.table(
        ["LOG", "SIZE", "WRITTEN"],
        [[name, render.size(each.st_size), render.ago(each.st_mtime)] for name, each in found],
        right=(1,),
    )
    render.next_step(f"mlxq logs {there[0]} -f")
