"""What a command would run, word for word; the keys are masked. Nothing is started, written or signalled."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from state import service
from state.db import Database
from state.paths import Home

if TYPE_CHECKING:
    from tasks.supervision.spec import LaunchSpec

SECRET = ("_KEY", "_TOKEN")
"""Ends of the names of variables whose values are never shown."""


def starts(db: Database, home: Home, names: Sequence[str]) -> None:
    """Print the command that starts each service, with the variables that mlxq gives it. Raises as a start does."""
    from tasks.supervision import spec

    for name in names:
        click.echo(f"# start {name}")
        click.echo(command(spec.launch_spec(db, home, name)))


def stops(db: Database, names: Sequence[str], *, drain: bool = False) -> None:
    """Print the signals that end each service; with `drain`, an engine ends after its last answer."""
    from tasks.plan.gateway import ANSWER_SECONDS
    from tasks.supervision import lifecycle

    for name in names:
        one = service.find(db, name)
        click.echo(f"# stop {name}")
        if one is None or lifecycle.running(one) is None:
            click.echo("# no process of it runs")
        elif drain and one.kind == "engine":
            click.echo(f"kill -USR2 {one.pid}   # and TERM to its group after {ANSWER_SECONDS} s")
        else:
            click.echo(f"kill -TERM {one.pid}   # and its group; KILL after {lifecycle.GRACE_S:g} s")


def command(plan: LaunchSpec) -> str:
    """Give a start as one line for a shell."""
    from tasks.plan.engine import KEPT

    environment = {name: value for name, value in plan.environment(0).items() if name not in KEPT}
    return shlex.join(["env", *masked(environment), *plan.argv])


def masked(environment: Mapping[str, str]) -> list[str]:
    """Give NAME=value words, in order, without the value of any secret."""
    return [f"{name}={'***' if name.endswith(SECRET) else value}" for name, value in sorted(environment.items())]
