"""The side that invites: it makes tokens, takes who comes with one, and lets nodes go."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

from state import fleet, keys
from state.db import Database, atomic
from state.errors import Damaged, InvitationRefused, NotFound, UsageProblem
from state.fleet import Node
from state.paths import Home
from tasks.fleet import identity, token, trust
from tasks.fleet.identity import MEMBER_KEY
from tasks.fleet.node_client import NodeClient, forget_and_tell
from tasks.fleet.token import Invitation
from tasks.plan import fleet as plan

_KEY = re.compile(r"sk-mlxq-[A-Za-z0-9_-]{20,100}")
WORDS = {
    "unknown": "This invitation is not of this node.",
    "used": "This invitation was used already.",
    "expired": "This invitation has expired: it was valid for ten minutes.",
}


def invite(db: Database, addresses: tuple[str, ...]) -> tuple[Invitation, float]:
    """Make an invitation; return it, and until when it is valid in unix seconds. Only its hash is stored.

    Raises NotRunning where the gateway has no certificate.
    """
    home = db.home
    authority = trust.own_authority(home)
    secret = token.new_secret()
    until = fleet.invite(db, token.digest(secret))
    return Invitation(identity.own_name(home), addresses, trust.fingerprint(authority), secret), until


@atomic
def admit(db: Database, request: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Take a node that comes with an invitation; return what it is answered, with the key for its membership.

    With `check` in the request nothing changes. What is wrong uses no invitation up. Raises InvitationRefused before
    anything else is said, UsageProblem.
    """
    secret = request.get("secret")
    outcome = fleet.redeem(db, token.digest(secret if isinstance(secret, str) else ""))
    if outcome != "valid":
        raise InvitationRefused(WORDS[outcome], hint="mlxq node invite")
    node, key = _checked(db, request)
    answer: dict[str, Any] = {"name": identity.own_name(db.home), "version": version, "protocol": plan.PROTOCOL}
    if request.get("check") is True:
        raise _CheckedOnly(answer)
    for other in fleet.nodes(db):
        if node.fingerprint == other.fingerprint and node.name != other.name:
            forget(db, other.name)
    fleet.put(db, node)
    fleet.put_key(db.home, node.name, key)
    return answer | {"key": make_key(db.home, f"{MEMBER_KEY}{node.name}", "member")}


class _CheckedOnly(Exception):
    """All is well, and the transaction is rolled back."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__()
        self.answer = answer


def admit_or_check(db: Database, request: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return what `admit` does, also where the request only checks."""
    try:
        return admit(db, request, version)
    except _CheckedOnly as checked:
        return checked.answer


def _checked(db: Database, request: Mapping[str, Any]) -> tuple[Node, str]:
    """Return the node that wants to join, and the key that opens it. Raises UsageProblem."""
    name, authority, key, protocol = (request.get(field) for field in ("name", "authority", "key", "protocol"))
    if protocol != plan.PROTOCOL:
        number = protocol if isinstance(protocol, int) else 0
        other = plan.NodeStatus("", plan.version(request.get("version")), number)
        raise UsageProblem(
            f"The node cannot join: {plan.apart(other)}.", hint="mlxq upgrade   (on the older of the two)"
        )
    if not (isinstance(name, str) and fleet.NAME.fullmatch(name)):
        raise UsageProblem("A node's name has small letters, digits and dashes.", hint="mlxq config set node-name NAME")
    try:
        if not (isinstance(authority, str) and len(authority) <= trust.LONGEST_PEM):
            raise ValueError("authority")  # noqa: TRY301 (one refusal for all)
        print_, addresses = trust.fingerprint(authority), token.addresses(request.get("addresses") or ())
        trust.pinned(authority)
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise ValueError("key")  # noqa: TRY301 (one refusal for all)
    except (ValueError, TypeError, ssl.SSLError, Damaged) as problem:
        raise UsageProblem("The request of a node to join is not whole.") from problem
    _refuse_taken(db, name, print_)
    return Node(name, "mlxq", addresses[0], authority, print_, addresses=addresses), key


def _refuse_taken(db: Database, name: str, fingerprint: str) -> None:
    """Raise UsageProblem for the name of another node, or of this one."""
    other = fleet.find(db, name)
    if name == identity.own_name(db.home) or (other and other.fingerprint != fingerprint):
        raise UsageProblem(
            f"There is a node {name} in this fleet already.",
            done="The invitation is still valid.",
            hint="mlxq config set node-name NAME   (on the machine that joins)",
        )


def make_key(home: Home, name: str, kind: keys.KeyKind) -> str:
    """Make a key of this name, in place of one that is there, and return it."""
    path = keys.file(home)
    revoke_key(home, name)
    return keys.create(path, name, kind=kind)


def revoke_key(home: Home, name: str) -> bool:
    """Revoke a key; return whether there was one."""
    try:
        keys.revoke(keys.file(home), name)
    except NotFound:
        return False
    return True


def forget(db: Database, name: str) -> bool:
    """Forget a node and revoke the key of its membership; return whether there was such a node."""
    revoke_key(db.home, f"{MEMBER_KEY}{name}")
    return fleet.remove(db, name)


def remove(db: Database, name: str) -> str | None:
    """Remove a node from this fleet, and tell it; return why it could not be told, None where it was.

    Raises NotFound.
    """
    node = fleet.get(db, name)
    if node.kind == "openai":
        forget(db, name)
        return None
    return forget_and_tell(lambda: NodeClient.of(db.home, node), lambda: forget(db, name), "POST", "/fleet/v1/leave")
