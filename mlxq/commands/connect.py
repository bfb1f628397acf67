"""`mlxq connect`."""

from __future__ import annotations

import shlex

import click

from mlxq import ask, gateway
from state.paths import home


@click.group(no_args_is_help=True)
def command() -> None:
    """Print what another program needs to use the gateway."""


@command.command()
def env() -> None:
    """Print exports for OpenAI clients: eval "$(mlxq connect env)"."""
    place = home()
    with ask.reading(place) as db:
        url = gateway.endpoint(db)
    click.echo(f"export OPENAI_BASE_URL={shlex.quote(url)}")
    click.echo(f"export OPENAI_API_KEY={shlex.quote(gateway.key(place))}")
