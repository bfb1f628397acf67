"""`mlxq connect`."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from mlxq import confirm, gateway_client, jobs_client, options, render
from mlxq.clients import backup
from mlxq.clients.client import MASKED, Client, Target
from mlxq.clients.table import CLIENTS
from mlxq.web import auth
from state import keys, on_demand, ports, secrets, settings, stack
from state.db import Database
from state.errors import NotFound, NotRunning, UsageProblem
from state.paths import Home, get_home

OURS = re.compile(r"sk-mlxq-[\w-]{20,}")
UNENCRYPTED = "Nothing is encrypted: who can read the network can read keys and prompts."
SHELL = "env"
"""The name of the key that shells share."""
PLAIN = 0o644
"""Mode of a new file that holds no key."""
SCRAPE = """\
- job_name: mlxq
  static_configs:
    - targets: ["127.0.0.1:{port}"]
  authorization:
    credentials: {key}
"""
"""An element of scrape_configs; metrics_path is /metrics by default."""


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Configure another program to use mlxq.

    Shows the change and asks first; keeps the last five versions of every file for --restore. Each program gets its
    own API key.
    """


@command.command()
@options.as_json
def env(*, as_json: bool) -> None:
    """Print exports for OpenAI clients: eval "$(mlxq connect env)".

    They have a key of their own, named env; `mlxq keys revoke env` has the next call create another. Where a proxy is
    set that does not except this machine, NO_PROXY is printed too.
    """
    from tasks.system import proxies

    home = get_home()
    with jobs_client.reading(home) as db:
        url = ports.endpoint(ports.listing(db))
    variables = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": _shell_key(home)}
    if excepted := proxies.exceptions():
        variables |= {"NO_PROXY": excepted, "no_proxy": excepted}
    if as_json:
        render.data({"env": variables})
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@command.command()
def prometheus() -> None:
    """Print the scrape configuration for Prometheus.

    Add it to scrape_configs in prometheus.yml. Its key reads the metrics and nothing else. See docs/metrics.md for the
    metrics, alert rules and a Grafana dashboard.
    """
    home = get_home()
    gateway_client.key(home)  # says that nothing is set up yet
    port = settings.load(home)["page-port"]
    if not port:
        raise NotRunning("The page is turned off.", hint="mlxq config reset page-port")
    key = auth.metrics_key(secrets.ensure(home.secrets)[secrets.PAGE])
    click.echo(SCRAPE.format(port=port, key=key), nl=False)


@command.command()
@options.as_json
def network(*, as_json: bool) -> None:
    """Print how programs on other machines reach the gateway.

    With the setting gateway-tls, also how they come to trust its certificate.
    """
    from mlxq.clients import network as networks

    reach = networks.read(get_home())
    if as_json:
        render.data(reach.document())
        return
    rows = [["Addresses", " ".join(reach.urls)]]
    if reach.authority:
        rows += [["Certificate", str(reach.authority)], ["SHA-256", reach.fingerprint]]
    render.table(["", ""], rows)
    if not reach.authority:
        render.say(f"\n{UNENCRYPTED}")
        render.next_step("mlxq config set gateway-tls true")
        return
    click.echo(f"\nOn another machine, copy the certificate, then trust it:\n  {reach.copy}")
    for where, line in networks.TRUST.items():
        click.echo(f"  # {where}\n  {line}")
    render.next_step("mlxq keys create NAME")


def _subcommand(client: Client) -> click.Command:
    """Return the command of one client."""

    @options.dry_run
    @click.option("--restore", is_flag=True, help="Restore the file from the newest backup.")
    @options.yes
    def configure(*, dry_run: bool, restore: bool, yes: bool, run: bool = False, arguments: Sequence[str] = ()) -> None:
        again = f"mlxq connect {client.name}{' --restore' if restore else ''} --yes"
        consent = _refuse if dry_run else _accept if yes else _ask(again)
        if restore:
            _restore(get_home(), client, consent)
        elif _connect(get_home(), client, consent, runs=run) and run and not dry_run:
            _run(client, arguments)

    if client.argv:
        configure = click.option("--run", is_flag=True, help="Start it then, with ARGUMENTS.")(configure)
        configure = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)(configure)
    help_text = f"Configure {client.title}."
    return click.command(name=client.name, help=help_text)(configure)


for client in CLIENTS.values():
    command.add_command(_subcommand(client))

Consent = Callable[[], bool]
"""Returns whether the change that was shown may be made; it may ask."""


def _refuse() -> bool:
    render.say("Nothing was changed.")
    return False


def _accept() -> bool:
    return True


def _ask(again: str) -> Consent:
    """Return a consent that asks; `again`: the command that needs no answer."""

    def ask() -> bool:
        confirm.change("Make this change", effect="This changes a file", hint=again, default=True)
        return True

    return ask


def _run(client: Client, arguments: Sequence[str]) -> None:
    """Become the program. Raises NotFound where it is not installed."""
    sys.stdout.flush()
    try:
        os.execvp(client.argv[0], [*client.argv, *arguments])  # noqa: S606 (the program that the user named)
    except OSError as problem:
        raise NotFound(
            f"{client.argv[0]} cannot be started: {problem.strerror}.",
            done=f"{client.title} is configured.",
            hint=f"Install {client.title}, then: {client.start}",
        ) from problem


def _connect(home: Home, client: Client, consent: Consent, *, runs: bool) -> bool:
    """Show the change, ask, and make it; return whether the program is configured.

    `runs`: whether it is started then.
    """
    path = client.path(os.environ, Path.home())
    before = backup.read(path)
    key = _known_key(home, client, before)
    target = _target(home, key or MASKED)
    _warn_of_window(client, target)
    after = _written(client, path, before, target)
    if key and after == before:
        render.say(f"{client.title} is already configured ({path}).")
        return True
    _show(path, before, after)
    if not consent():
        return False
    issued = key or _new_key(home, client)
    backup.save(home.make(), client.name, before)
    backup.write(path, _written(client, path, before, _target(home, issued)), mode=_mode(client, path))
    render.say(f"Wrote {path}.")
    if not (key or client.holds_key):
        click.echo(issued)
        render.say("Store this key now; it cannot be shown again.")
    if not runs:
        render.next_step(client.start)
    return True


def _warn_of_window(client: Client, target: Target) -> None:
    """Say so where the program does not work with the window of its tier."""
    tier = target.main
    if tier.context < client.needs:
        render.say(
            f"{client.title} needs a window of about {client.needs:,} tokens, and {tier.name} has {tier.context:,}: "
            "expect it to fail. To choose a model with more, run: mlxq setup"
        )


def _restore(home: Home, client: Client, consent: Consent) -> None:
    """Restore the file from the newest backup, and delete that backup."""
    path = client.path(os.environ, Path.home())
    saved, text = backup.newest(home, client.name)
    _show(path, backup.read(path), text)
    if not consent():
        return
    backup.write(path, text, mode=_mode(client, path))
    saved.unlink()
    render.say(f"Restored {path}." if text is not None else f"Removed {path}; it did not exist before.")
    render.next_step(f"mlxq keys revoke {client.name}")


def _target(home: Home, key: str) -> Target:
    """Return what the client is to use. Raises NotSetUp without a stack."""
    with jobs_client.reading(home) as db:
        tiers = stack.with_defaults(stack.require(db), settings.load(home))
        url = ports.endpoint(ports.listing(db))
        embedding = _embedding(db)
    return Target(url.removesuffix("/v1"), key, tiers, embedding)


def _embedding(db: Database) -> str:
    """Return the name of the model for embeddings: the stack's, else one on this disk; empty where there is none."""
    if any(engine.purpose == "embedding" for engine in stack.retrieval(db)):
        return "embedding"
    models = (entry.model for entry in on_demand.models(db) if entry.engine.purpose == "embedding")
    return next(models, "")


def _written(client: Client, path: Path, before: str | None, target: Target) -> str:
    """Return the new text of the file. Raises UsageProblem when the old one cannot be parsed."""
    try:
        return client.write(before or "", target)
    except ValueError as problem:
        raise UsageProblem(
            f"{path} cannot be read: {problem}.", done="It was not changed.", hint=f"$EDITOR {shlex.quote(str(path))}"
        ) from problem


def _known_key(home: Home, client: Client, text: str | None) -> str | None:
    """Return the key that the file contains, when it is one of ours and still valid."""
    valid = keys.read(keys.file(home))
    if not client.holds_key and client.name in {key.name for key in valid.values()}:
        return MASKED
    return next((key for key in OURS.findall(text or "") if keys.digest(key) in valid), None)


def _new_key(home: Home, client: Client) -> str:
    """Create a key for the client; an older one of its name, which cannot be shown again, is revoked."""
    store = keys.file(home)
    if client.name in {key.name for key in keys.read(store).values()}:
        keys.revoke(store, client.name)
    return keys.create(store, client.name)


def _shell_key(home: Home) -> str:
    """Return the key of shells; a new one where there is none, or it was revoked."""
    gateway_client.key(home)  # says that nothing is set up yet
    path, stored = keys.file(home), secrets.read(home.secrets).get(secrets.SHELL, "")
    valid = keys.read(path)
    if keys.digest(stored) in valid:
        return stored
    if SHELL in {key.name for key in valid.values()}:
        keys.revoke(path, SHELL)
    key = keys.create(path, SHELL)
    secrets.put(home.secrets, secrets.SHELL, key)
    return key


def _mode(client: Client, path: Path) -> int:
    """Return the mode to write with: a file with a key is readable by its owner only."""
    if client.holds_key:
        return 0o600
    return path.stat().st_mode & 0o777 if path.exists() else PLAIN


def _show(path: Path, before: str | None, after: str | None) -> None:
    """Print what would change, with our keys masked."""
    lines = difflib.unified_diff(
        _lines(before), _lines(after), str(path) if before is not None else "nothing", str(path), lineterm="", n=2
    )
    colors = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        click.echo(render.paint(line, colors.get(line[:1], "reset"), sys.stdout))


def _lines(text: str | None) -> list[str]:
    return OURS.sub(MASKED, text or "").splitlines()
