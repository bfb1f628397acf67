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
@options.tier("Ask this one; the first by default.")
def command(prompt: tuple[str, ...], tier: str | None) -> None:
    """Ask a tier, and print its answer as it comes.

    PROMPT is one question, or `-` to read it from standard input. Decoding is greedy: the same question gives the
    same answer.
    """
    text = " ".join(prompt)
    question = sys.stdin.read() if text == "-" else text
    if not question.strip():
        raise UsageProblem("There is no question.", hint='mlxq chat "What is the capital of France?"')
    place = get_home()
    with jobs_client.reading(place) as db:
        tiers = stack.tiers(db)
        if not tiers:
            raise NotSetUp("There is no stack to ask.", hint="mlxq setup")
        name = stack.tier(db, tier).name if tier else tiers[0].name
        url = ports.endpoint(ports.listing(db))
    from mlxq import gateway_client

    body = {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0}
    for piece in gateway_client.stream(url, gateway_client.key(place), body):
        click.echo(piece, nl=False)
    click.echo()
