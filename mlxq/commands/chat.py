"""`mlxq chat`."""

from __future__ import annotations

import sys

import click

from mlxq import jobs_client, options
from state import ports, stack
from state.errors import NotSetUp, UsageProblem
from state.paths import get_home


@click.command()
@click.argument("prompt", nargs=-1)
@options.tier("Tier to ask.  [default: the first]")
def command(prompt: tuple[str, ...], tier: str | None) -> None:
    """Send a prompt to a model and stream the answer.

    PROMPT is the text, or `-` to read it from standard input. Decoding is greedy: the same prompt gives the same
    answer.
    """
    text = " ".join(prompt)
    content = sys.stdin.read() if text == "-" else text
    if not content.strip():
        raise UsageProblem("There is no prompt.", hint='mlxq chat "What is the capital of France?"')
    home = get_home()
    with jobs_client.reading(home) as db:
        tiers = stack.tiers(db)
        if not tiers:
            raise NotSetUp("There is no stack to send it to.", hint="mlxq setup")
        name = stack.tier(db, tier).name if tier else tiers[0].name
        url = ports.endpoint(ports.listing(db))
    from mlxq import gateway_client

    body = {"model": name, "messages": [{"role": "user", "content": content}], "temperature": 0}
    for piece in gateway_client.stream(url, gateway_client.key(home), body):
        click.echo(piece, nl=False)
    click.echo()
