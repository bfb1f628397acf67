"""`mlxq node`."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from mlxq import __version__, confirm, job_view, jobs_client, options, render
from mlxq.fleet import report as fleet_report
from state import fleet, settings, stack
from state.db import Database
from state.errors import Offline, UsageProblem
from state.paths import Home, get_home
from tasks import kinds
from tasks.plan.gateway import SERVICE as GATEWAY

ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 (the setting's word for all addresses)
DRAINED_S = 600.0
LOOK_S = 1.0
SHOWN = 16
"""Digits of a fingerprint that a list shows."""
INVITE = "mlxq node invite   (on a machine of the fleet)"


class NodeName(click.ParamType[str]):
    """The name of a node."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the table of nodes."""
        rows = options.completions(lambda db: [(node.name, node.address) for node in fleet.nodes(db)])
        return [CompletionItem(name, help=address) for name, address in rows if name.startswith(incomplete)]


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Join machines to one fleet, and look at its nodes.

    The node that invites keeps the list. Nodes ask each other over TLS, and trust the certificate that came with the
    invitation alone. `mlxq --node NAME COMMAND` runs a command on another node.
    """


@command.command()
@options.yes
@options.as_json
def invite(*, yes: bool, as_json: bool) -> None:
    """Print a token by which another machine joins the fleet.

    It is valid once, for ten minutes. The gateway is opened to other machines, encrypted, if it is not yet.
    """
    from tasks.fleet import identity, inviting

    home = get_home()
    open_gateway(home, yes=yes)
    with jobs_client.changing(home) as db:
        invitation, until = inviting.invite(db, identity.addresses(home))
    if as_json:
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
        render.data({"token": invitation.text(), "expires_at": expires, "addresses": list(invitation.addresses)})
        return
    click.echo(invitation.text())
    render.say("Valid once, until " + time.strftime("%H:%M", time.localtime(until)) + ". On the other machine:")
    render.next_step("mlxq node join TOKEN")


@command.command()
@click.argument("token", required=False)
@options.yes
def join(token: str | None, *, yes: bool) -> None:
    """Join the fleet of the machine that printed TOKEN.

    With `-` as TOKEN, read it from standard input; without one, list the machines that announce themselves in this
    network, and ask for it. The gateway of this machine is opened to other machines, encrypted; nothing it answers is
    refused meanwhile.
    """
    from tasks.fleet import identity, joining
    from tasks.fleet import token as tokens

    home = get_home()
    invitation = tokens.parse(_token(home, token))
    with jobs_client.changing(home) as db:
        stack.require(db)
        joining.require_other(home, invitation)
        inviter = joining.reach(invitation)
        joining.check(db, inviter, invitation, __version__)
        open_gateway(home, yes=yes)
        membership = joining.join(db, inviter, invitation, identity.addresses(home), __version__)
        answer = joining.await_seen(db, membership)
    name = identity.own_name(home)
    if answer.get("problem") or not answer.get("seen_at"):
        raise Offline(
            f"{invitation.name} cannot reach this machine yet: {fleet_report.words(answer)}.",
            done=f"{name} belongs to its fleet, and serves in it as soon as it can be reached.",
            hint="mlxq connect network",
        )
    render.say(f"{name} serves in the fleet of {invitation.name}.")


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List nodes, what they serve and what is wrong with them."""
    home = get_home()
    with jobs_client.reading(home) as db:
        report = fleet_report.collect(db)
    if as_json:
        render.data(report.document())
    elif report.nodes or report.memberships:
        fleet_report.show(report)
    else:
        render.say(f"{report.name} is in no fleet.")
        render.next_step("mlxq node invite")


@command.command()
@click.argument("name", type=NodeName())
@click.option("--undo", is_flag=True, help="Offer the node again.")
@options.timeout
def drain(name: str, *, undo: bool, timeout_s: float | None) -> None:
    """Take the node NAME out of routing, and wait for its last answer."""
    with jobs_client.changing(get_home()) as db:
        _refuse_own(db, name, "mlxq down --drain")
        fleet.get(db, name)
        fleet.change(db, name, state="joined" if undo else "draining")
        if undo:
            render.say(f"{name} is offered again.")
            return
        _await_drained(db, name, timeout_s or DRAINED_S)
    render.next_step(f"mlxq node remove {name}   (or offer it again: mlxq node drain {name} --undo)")


def _await_drained(db: Database, name: str, limit_s: float) -> None:
    """Wait until a node answers nothing; one that cannot be asked is not waited for."""
    from tasks.fleet.node_client import NodeClient

    until = time.monotonic() + limit_s
    node = fleet.get(db, name)
    if node.kind == "openai":
        render.say(f"{name} is offered no more; it does not say what it still answers.")
        return
    with NodeClient.of(db.home, node) as client:
        while (status := client.look().status) and status.running:
            if time.monotonic() > until:
                render.say(f"{name} is offered no more, and still answers {status.running} requests.")
                return
            time.sleep(LOOK_S)
    render.say(f"{name} is offered no more and answers nothing." if status else f"{name} is offered no more.")


@command.command()
@click.argument("name", type=NodeName())
@options.yes
def remove(name: str, *, yes: bool) -> None:
    """Remove the node NAME from the fleet, or leave the fleet of NAME.

    The keys of both sides are revoked, on the other side as far as it can be reached.
    """
    from tasks.fleet import identity, inviting, joining

    home = get_home()
    with jobs_client.changing(home) as db:
        _refuse_own(db, name, "mlxq node list")
        node, member = fleet.find(db, name), name in {entry.name for entry in fleet.memberships(db)}
        if not member:
            node = fleet.get(db, name)
        question = f"Leave the fleet of {name}" if member else f"Remove {name}"
        confirm.machines(question, f"mlxq node remove {name} --yes", yes=yes)
        problems = [joining.leave(db, name)] if member else []
        problems += [inviting.remove(db, name)] if node else []
    render.say(f"{name} is removed." if node else f"This node left the fleet of {name}.")
    if untold := next((problem for problem in problems if problem), None):
        render.say(f"It could not be told: {untold} Its key opens nothing here any more.")
        render.next_step(f"mlxq node remove {identity.own_name(home)}   (on {name})")


@command.command()
@click.option("--openai", "url", required=True, metavar="URL", help="Base URL of the server, without /v1.")
@click.option("--key", "key", required=True, metavar="-", help="Its API key: `-` reads it from standard input.")
@click.option("--name", help="Name of the node.  [default: the host of URL]")
@click.option("--serves", multiple=True, metavar="TIER=MODEL", help="Offer its model MODEL as TIER, too.")
def add(url: str, key: str, *, name: str | None, serves: tuple[str, ...]) -> None:
    """Add a server that speaks OpenAI's API, such as vLLM, as a node.

    It gets requests and no jobs. A server that wants no key takes any.
    """
    from tasks.fleet import adding

    if key != "-":
        raise UsageProblem("A key in a command is seen by others.", hint="mlxq node add --openai URL --key -")
    secret = (click.prompt("Key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    groups = dict(_pair(text) for text in serves)
    with jobs_client.changing(get_home()) as db:
        node = adding.add(db, url, secret, name, groups)
    if node.address.startswith("http:"):
        render.say("Its address is http: the key and all requests go to it without encryption.")
    render.say(f"{node.name} serves {', '.join(node.serves)}.")


def _pair(text: str) -> tuple[str, str]:
    tier, equals, model = text.partition("=")
    if not (tier and equals and model):
        raise click.BadParameter(f"{text!r} is not TIER=MODEL.", param_hint="--serves")
    return tier, model


def _token(home: Home, text: str | None) -> str:
    """Return the token: given, read from standard input, or asked for on a terminal."""
    if text == "-":
        if token := sys.stdin.readline().strip():
            return token
        raise UsageProblem("There is no token on standard input.", hint=INVITE)
    if text is not None:
        return text
    _show_seen(home)
    if not sys.stdin.isatty():
        raise UsageProblem(
            "A token is needed; a machine of the fleet prints one.", hint="mlxq node invite   (on that machine)"
        )
    return click.prompt("Token", err=True, hide_input=True)


def _show_seen(home: Home) -> None:
    """List the machines that announce themselves in this network; what they say proves nothing."""
    from tasks.fleet import discovery, identity

    own = identity.own_name(home)
    with suppress(OSError):  # no network
        if machines := [machine for machine in discovery.browse(home) if machine.name != own]:
            cells = [
                [machine.name, machine.addresses[0], machine.version, machine.fingerprint[:SHOWN]]
                for machine in machines
            ]
            render.table(["NODE", "ADDRESS", "VERSION", "FINGERPRINT"], cells, err=True)
            render.say("They say so themselves; a token says which one to trust.")
            render.next_step("mlxq node invite   (on the one that you trust)")
            return
    render.say("No machine in this network announces mlxq.")


def _refuse_own(db: Database, name: str, hint: str) -> None:
    """Raise UsageProblem for this machine's own name."""
    from tasks.fleet import identity

    if name == identity.own_name(db.home):
        raise UsageProblem(
            f"{name} is this machine.",
            done="A node is removed on another one, and leaves a fleet by its name.",
            hint=hint,
        )


def open_gateway(home: Home, *, yes: bool) -> None:
    """Have other machines reach the gateway, encrypted, after the user agreed.

    Raises UsageProblem, and as a start of the gateway does.
    """
    from tasks.fleet import identity

    with jobs_client.changing(home) as db:
        stack.require(db)
        if identity.is_open(home) and fleet.is_on(db):
            return
    port = settings.load(home)["litellm-port"]
    render.say(
        f"This opens the gateway to other machines: port {port} on all addresses of this machine, encrypted, and"
        " nothing without a key."
    )
    confirm.change("Open it", effect="This opens the gateway", hint="Add --yes.", yes=yes)
    if settings.load(home)["gateway-host"] == "127.0.0.1":
        settings.write(home, "gateway-host", ALL_ADDRESSES)
    settings.write(home, "gateway-tls", "true")
    if not identity.is_open(home):
        raise UsageProblem(
            "MLXQ_GATEWAY_HOST or MLXQ_GATEWAY_TLS in the environment keeps the gateway closed.",
            hint="unset MLXQ_GATEWAY_HOST MLXQ_GATEWAY_TLS",
        )
    with jobs_client.writing(home) as db:
        fleet.turn_on(db)
        ids = jobs_client.enqueue(db, [kinds.new("start", {"service": GATEWAY})])
    jobs_client.follow(home, jobs_client.these(ids), job_view.view())
