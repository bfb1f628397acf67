"""`mlxq keys`."""

from __future__ import annotations

import time
from typing import Any

import click
from click.shell_completion import CompletionItem

from mlxq import jobs_client, options, render
from state import keys, stack
from state.errors import UsageProblem
from state.keys import Key
from state.paths import Home, get_home


class KeyName(click.ParamType[str]):
    """The name of an app's key."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the file of keys."""
        return [CompletionItem(each.name) for each in _all(get_home()) if each.name.startswith(incomplete)]


@click.group(no_args_is_help=True)
def command() -> None:
    """Give apps keys of their own to the gateway, and take them away.

    The gateway takes a new key, and refuses a revoked one, from the next request on.
    """


@command.command()
@click.argument("name")
@click.option("--tiers", metavar="A,B", help="Only these tiers; else all.")
@click.option("--rpm", type=click.IntRange(min=1), metavar="N", help="At most N requests a minute.")
@click.option("--background", is_flag=True, help="Its requests stand back while others are at work.")
def create(name: str, *, tiers: str | None, rpm: int | None, background: bool) -> None:
    """Make a key for the app NAME and print it once.

    It is not shown again: mlxq keeps its hash alone.
    """
    place = get_home()
    wanted = tuple(tier.strip() for tier in (tiers or "").split(",") if tier.strip())
    if tiers is not None and not wanted:
        raise UsageProblem("--tiers names no tier.", hint=f"mlxq keys create {name}")
    if wanted:
        with jobs_client.reading(place) as db:
            wanted = tuple(stack.tier(db, each).name for each in wanted)
    secret = keys.create(keys.place(place.make()), name, tiers=wanted, rpm=rpm, background=background)
    click.echo(secret)
    render.say(f"This key of {name} is not shown again.")


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List the apps' keys: what each may do, never the key."""
    found = _all(get_home())
    if as_json:
        render.data({"keys": [_row(each) for each in found]})
    elif found:
        render.table(
            ["NAME", "CREATED", "TIERS", "RPM", "PRIORITY"],
            [
                [each.name, render.ago(each.created), ", ".join(each.tiers) or "all", each.rpm, _priority(each)]
                for each in found
            ],
            right=(3,),
        )
    else:
        render.say("There are no keys for apps yet.")
        render.next_step("mlxq keys create my-app")


@command.command()
@click.argument("name", type=KeyName())
def revoke(name: str) -> None:
    """Take the key NAME away.

    The gateway refuses it from the next request on.
    """
    keys.revoke(keys.place(get_home()), name)
    render.say(f"The key {name} opens nothing any more.")


def _all(place: Home) -> list[Key]:
    return sorted(keys.read(keys.place(place)).values(), key=lambda each: each.name)


def _priority(each: Key) -> str:
    return "background" if each.background else "interactive"


def _row(each: Key) -> dict[str, Any]:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each.created))
    return {
        "name": each.name,
        "created": created,
        "tiers": list(each.tiers),
        "rpm": each.rpm,
        "background": each.background,
    }
