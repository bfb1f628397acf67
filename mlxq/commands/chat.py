"""`mlxq chat`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from mlxq import jobs_client, options, render
from state import ports, stack
from state.errors import UsageProblem
from state.paths import Home, get_home


@click.command()
@click.argument("prompt", nargs=-1)
@options.tier("Tier to ask.  [default: the first]")
@click.option(
    "--timeout",
    "timeout_s",
    type=options.Seconds(min=0, min_open=True),
    metavar="SECONDS",
    default=600.0,
    show_default=True,
    help="Give up after this long without output.",
)
@click.option("-c", "--continue", "continues", is_flag=True, help="Continue the last conversation.")
def command(prompt: tuple[str, ...], tier: str | None, timeout_s: float, *, continues: bool) -> None:
    """Send a prompt to a model and stream the answer.

    PROMPT is the text, or `-` to read it from standard input. Decoding is greedy: the same prompt gives the same
    answer. After three seconds without output it says what it is waiting for.

    Without PROMPT, on a terminal, it starts a conversation: /help lists its commands, Ctrl-C stops an answer, Ctrl-D
    exits.
    """
    text = " ".join(prompt)
    interactive = not prompt and sys.stdin.isatty() and sys.stdout.isatty()
    if continues and not interactive:
        raise UsageProblem("A conversation is continued on a terminal, without a prompt.", hint="mlxq chat --continue")
    content = sys.stdin.read() if text == "-" else text
    if not content.strip() and not interactive:
        raise UsageProblem("There is no prompt.", hint='mlxq chat "What is the capital of France?"')
    home = get_home()
    with jobs_client.reading(home) as db:
        tiers = [row.name for row in stack.require(db)]
        name = stack.tier(db, tier).name if tier else tiers[0]
        url = ports.endpoint(ports.listing(db))
    if interactive:
        _converse(home, url, tiers, name if tier else None, timeout_s, continues=continues)
    else:
        _ask(home, url, name, content, timeout_s)


def _converse(home: Home, url: str, tiers: Sequence[str], tier: str | None, limit_s: float, *, continues: bool) -> None:
    """Have a conversation; `tier`: the one that was named."""
    from mlxq.conversation import storage
    from mlxq.conversation.dialog import Dialog
    from mlxq.conversation.session import Conversation
    from state import settings

    dialog = storage.last(home) if continues else Dialog(tiers[0])
    if tier or dialog.tier not in tiers:
        dialog.tier = tier or tiers[0]
    keeps: bool = settings.load(home)[storage.SETTING]
    Conversation(home, url, tiers, dialog, limit_s=limit_s, keeps=keeps).run()


def _ask(home: Home, url: str, name: str, content: str, limit_s: float) -> None:
    """Print the answer to one prompt."""
    from mlxq import gateway_client

    body = {"model": name, "messages": [{"role": "user", "content": content}], "temperature": 0}
    wait = Wait(home, name)
    for piece in gateway_client.stream(url, gateway_client.key(home), body, limit_s=limit_s, on_silence=wait.say):
        click.echo(piece, nl=False)
    click.echo()


class Wait:
    """Says on stderr what an answer waits for, whenever that changes."""

    def __init__(self, home: Home, tier: str) -> None:
        self._home = home
        self._tier = tier
        self._said = ""

    def say(self, waited_s: float) -> None:
        """Say what is waited for; `waited_s`: seconds since the request."""
        from mlxq import answer_wait  # what reads the engines' requests, 50 ms, only where there is silence

        reason = answer_wait.reason(self._home, self._tier, waited_s)
        if reason != self._said:
            self._said = reason
            render.say(f"Waiting: {reason}.")
