"""`mlxq connect`."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click

from mlxq import gateway_client, jobs_client, render
from mlxq.clients import backup
from mlxq.clients.client import MASKED, Client, Target
from mlxq.clients.table import CLIENTS
from state import keys, ports, secrets, stack
from state.errors import NotSetUp, UsageProblem
from state.paths import Home, get_home

OURS = re.compile(r"sk-mlxq-[\w-]{20,}")
SHELL = "env"
"""The name of the key that shells share."""
PLAIN = 0o644
"""Mode of a new file that holds no key."""


@click.group(no_args_is_help=True)
def command() -> None:
    """Make another program use the gateway.

    Shows what would change and asks first; keeps the last five versions of every file for --restore. Each program
    gets a key of its own.
    """


@command.command()
def env() -> None:
    """Print exports for OpenAI clients: eval "$(mlxq connect env)".

    They have a key of their own, named env; `mlxq keys revoke env` has the next call make another.
    """
    place = get_home()
    with jobs_client.reading(place) as db:
        url = ports.endpoint(ports.listing(db))
    click.echo(f"export OPENAI_BASE_URL={shlex.quote(url)}")
    click.echo(f"export OPENAI_API_KEY={shlex.quote(_shell_key(place))}")


def _subcommand(client: Client) -> click.Command:
    """Make the command of one client."""

    @click.option("--dry-run", "-n", is_flag=True, help="Show what would change, and change nothing.")
    @click.option("--restore", is_flag=True, help="Put the file back as it was before.")
    @click.option("--yes", "-y", is_flag=True, help="Do not ask.")
    def run(*, dry_run: bool, restore: bool, yes: bool) -> None:
        agreed = _refuse if dry_run else _agree if yes else _asked(client)
        if restore:
            _restore(get_home(), client, agreed)
        else:
            _connect(get_home(), client, agreed)

    help_text = f"Set up {client.title}."
    return click.command(name=client.name, help=help_text)(run)


for each in CLIENTS.values():
    command.add_command(_subcommand(each))

Agreed = Callable[[], bool]
"""Asks, or knows, whether the change that was shown may be made."""


def _refuse() -> bool:
    render.say("Nothing was changed.")
    return False


def _agree() -> bool:
    return True


def _asked(client: Client) -> Agreed:
    def asked() -> bool:
        if not sys.stdin.isatty():
            raise UsageProblem(
                "connect asks before it changes a file, and here is nobody to answer.",
                done="Nothing was changed.",
                hint=f"mlxq connect {client.name} --yes",
            )
        return click.confirm("Make this change", default=True, abort=True, err=True)

    return asked


def _connect(place: Home, client: Client, agreed: Agreed) -> None:
    """Show the change, ask, and make it."""
    path = client.path(os.environ, Path.home())
    before = backup.read(path)
    known = _known_key(place, client, before)
    after = _written(client, path, before, _target(place, known or MASKED))
    if known and after == before:
        render.say(f"{client.title} uses the gateway already ({path}).")
        return
    _show(path, before, after)
    if not agreed():
        return
    key = known or _fresh_key(place, client)
    backup.save(place.make(), client.name, before)
    backup.write(path, _written(client, path, before, _target(place, key)), mode=_mode(client, path))
    render.say(f"Wrote {path}.")
    if not (known or client.holds_key):
        click.echo(key)
        render.say("This key is not shown again.")
    render.next_step(client.start)


def _restore(place: Home, client: Client, agreed: Agreed) -> None:
    """Put the file back as the newest backup holds it, and forget that backup."""
    path = client.path(os.environ, Path.home())
    kept, text = backup.newest(place, client.name)
    _show(path, backup.read(path), text)
    if not agreed():
        return
    backup.write(path, text, mode=_mode(client, path))
    kept.unlink()
    render.say(f"{path} is as it was before." if text is not None else f"Removed {path}; there was none before.")
    render.next_step(f"mlxq keys revoke {client.name}")


def _target(place: Home, key: str) -> Target:
    """Give where the client shall go. Raises NotSetUp without a stack."""
    with jobs_client.reading(place) as db:
        tiers, url = stack.tiers(db), ports.endpoint(ports.listing(db))
    if not tiers:
        raise NotSetUp("There is no stack to connect to.", hint="mlxq setup")
    return Target(url.removesuffix("/v1"), key, tiers)


def _written(client: Client, path: Path, before: str | None, target: Target) -> str:
    """Give the file as it shall be. Raises UsageProblem when it cannot be read as what it should be."""
    try:
        return client.write(before or "", target)
    except ValueError as problem:
        raise UsageProblem(
            f"{path} cannot be read: {problem}.", done="It was left as it is.", hint=f"$EDITOR {shlex.quote(str(path))}"
        ) from problem


def _known_key(place: Home, client: Client, text: str | None) -> str | None:
    """Give the key that the file holds already, when it is one of ours and still opens the gateway."""
    made = keys.read(keys.place(place))
    if not client.holds_key and client.name in {one.name for one in made.values()}:
        return MASKED
    held = OURS.findall(text or "")
    return next((key for key in held if keys.digest(key) in made), None)


def _fresh_key(place: Home, client: Client) -> str:
    """Make a key for the client; an older one of its name, which nobody can show any more, is taken away."""
    where = keys.place(place)
    if client.name in {one.name for one in keys.read(where).values()}:
        keys.revoke(where, client.name)
    return keys.create(where, client.name)


def _shell_key(place: Home) -> str:
    """Return the key of shells; a new one where there is none, or it was revoked."""
    gateway_client.key(place)  # says that nothing is set up yet
    where, kept = keys.place(place), secrets.read(place.secrets).get(secrets.SHELL, "")
    made = keys.read(where)
    if keys.digest(kept) in made:
        return kept
    if SHELL in {key.name for key in made.values()}:
        keys.revoke(where, SHELL)
    key = keys.create(where, SHELL)
    secrets.put(place.secrets, secrets.SHELL, key)
    return key


def _mode(client: Client, path: Path) -> int:
    """Give the mode to write with: a file with a key is its owner's alone."""
    if client.holds_key:
        return 0o600
    return path.stat().st_mode & 0o777 if path.exists() else PLAIN


def _show(path: Path, before: str | None, after: str | None) -> None:
    """Print what would change, with our keys masked."""
    lines = difflib.unified_diff(
        _lines(before), _lines(after), str(path) if before is not None else "nothing", str(path), lineterm="", n=2
    )
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        click.echo(render.paint(line, colours.get(line[:1], "reset"), sys.stdout))


def _lines(text: str | None) -> list[str]:
    return OURS.sub(MASKED, text or "").splitlines()
