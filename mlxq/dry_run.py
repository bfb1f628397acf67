"""What a command would run, word for word; the keys are masked. Nothing is started, written or signaled."""

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


def starts(db: Database, home: Home, names: Sequence[str], *, configures: bool = False) -> None:
    """Print the command that starts each service, with the variables that mlxq gives it. Raises as a start does.

    `configures`: whether the gateway's configuration is written before, and not only where there is none.
    """
    from tasks.plan import gateway
    from tasks.supervision import gateway_config, spec

    for name in names:
        if name == gateway.SERVICE and gateway_config.is_written(db, home, always=configures):
            click.echo(f"# write {home.gateway_config}")
        click.echo(f"# start {name}")
        click.echo(command(spec.planned(db, home, name)))


def stops(db: Database, names: Sequence[str], *, drain: bool = False) -> None:
    """Print the signals that stop each service; with `drain`, an engine exits after its last response."""
    from tasks.plan.gateway import ANSWER_SECONDS
    from tasks.supervision import lifecycle

    for name in names:
        row = service.find(db, name)
        click.echo(f"# stop {name}")
        if row is None or lifecycle.running(row) is None:
            click.echo("# it has no process")
        elif drain and row.kind == "engine":
            click.echo(f"kill -USR2 {row.pid}   # and TERM to its group after {ANSWER_SECONDS} s")
        else:
            click.echo(f"kill -TERM {row.pid}   # and its group; KILL after {lifecycle.GRACE_S:g} s")


def command(spec: LaunchSpec) -> str:
    """Return a start as one line for a shell."""
    from tasks.plan.environment import KEPT

    environment = {name: value for name, value in spec.environment(0).items() if name not in KEPT}
    return shlex.join(["env", *masked(environment), *spec.argv])


def masked(environment: Mapping[str, str]) -> list[str]:
    """Return NAME=value words, in order, without the value of any secret."""
    return [f"{name}={'***' if name.endswith(SECRET) else value}" for name, value in sorted(environment.items())]
