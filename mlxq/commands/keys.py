"""`mlxq keys`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from mlxq import jobs_client, options, render
from state import keys, stack
from state.errors import UsageProblem
from state.keys import Key
from state.paths import Home, get_home

OPENS = {
    "fleet": "models, the node's state, jobs of an allow-list",
    "member": "its own membership of this fleet",
}
"""Kind of a node's key -> what it may ask."""


class KeyName(click.ParamType[str]):
    """The name of an app's key."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the file of keys."""
        return [CompletionItem(key.name) for key in _all(get_home()) if key.name.startswith(incomplete)]


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Manage API keys.

    The gateway accepts a new key, and rejects a revoked one, from the next request on.
    """


@command.command()
@click.argument("name")
@click.option("--tiers", metavar="A,B", help="Tiers the key may use.  [default: all]")
@click.option("--rpm", type=click.IntRange(min=1), metavar="N", help="Allow at most N requests per minute.")
@click.option("--background", is_flag=True, help="Low priority: wait while other requests run.")
@click.option("--no-store", is_flag=True, help="Keep its prompts and thoughts off the disk and out of the gateway.")
@click.option("--manage", is_flag=True, help="Allow it to download and delete models through Ollama's API.")
@click.option("--key", "source", metavar="-", help="Take a key of another front: `-` reads it from standard input.")
def create(
    name: str, *, tiers: str | None, rpm: int | None, background: bool, no_store: bool, manage: bool, source: str | None
) -> None:
    """Create a key for the app NAME and print it once.

    It cannot be shown again: mlxq stores only its hash. Two fronts take the same keys where each has them.
    """
    home = get_home()
    allowed = tuple(word.strip() for word in (tiers or "").split(",") if word.strip())
    if tiers is not None and not allowed:
        raise UsageProblem("--tiers names no tier.", hint=f"mlxq keys create {name}")
    if allowed:
        with jobs_client.reading(home) as db:
            allowed = tuple(stack.tier(db, tier).name for tier in allowed)
    path = keys.file(home.make())
    store = not no_store
    secret = None if source is None else _given(source)
    key = keys.create(
        path, name, tiers=allowed, rpm=rpm, background=background, store=store, manage=manage, secret=secret
    )
    if secret is not None:
        render.say(f"The key {name} is valid here too.")
        return
    click.echo(key)
    render.say("Store this key now; it cannot be shown again.")


def _given(word: str) -> str:
    """Return the key on standard input. Raises UsageProblem for one in the command."""
    if word != "-":
        raise UsageProblem("A key in a command is seen by others.", hint="mlxq keys create NAME --key -")
    return (click.prompt("Key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List keys and their permissions, not the keys themselves."""
    everything = _all(get_home())
    rows = [key for key in everything if key.kind == "app"]
    if as_json:
        render.data({"keys": [_row(key) for key in everything]})
        return
    if rows:
        render.table(
            ["NAME", "CREATED", "TIERS", "RPM", "PRIORITY", "PROMPTS", "MODELS"],
            [[key.name, render.ago(key.created), ", ".join(key.tiers) or "all", key.rpm, *_words(key)] for key in rows],
            right=(3,),
        )
    else:
        render.say("There are no keys yet.")
        render.next_step("mlxq keys create my-app")
    _show_nodes([key for key in everything if key.kind != "app"])


def _show_nodes(nodes: Sequence[Key]) -> None:
    """Print the keys of other nodes apart: they are made by `mlxq node`, and revoked by it on both sides."""
    if nodes:
        click.echo("\nKeys of nodes")
        render.table(
            ["NAME", "CREATED", "OPENS"],
            [[key.name, render.ago(key.created), OPENS.get(key.kind, "")] for key in nodes],
        )


@command.command()
@click.argument("name", type=KeyName())
def revoke(name: str) -> None:
    """Revoke the key NAME.

    The gateway rejects it from the next request on.
    """
    keys.revoke(keys.file(get_home()), name)
    render.say(f"Key {name} revoked.")


def _all(home: Home) -> list[Key]:
    return sorted(keys.read(keys.file(home)).values(), key=lambda key: key.name)


def _words(key: Key) -> tuple[str, str, str]:
    """Return a key's priority, where its prompts may be kept, and whether it may change which models are here."""
    priority, prompts = "background" if key.background else "interactive", "disk" if key.store else "memory only"
    return priority, prompts, "manage" if key.manage else "use"


def _row(key: Key) -> dict[str, Any]:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.created))
    return {
        "name": key.name,
        "created": created,
        "tiers": list(key.tiers),
        "rpm": key.rpm,
        "background": key.background,
        "store": key.store,
        "manage": key.manage,
        "kind": key.kind,
    }
