"""The side that joins: it pins who invited, hands over its own authority and a key, and may leave again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from state import fleet
from state.db import Database
from state.errors import Damaged, InvitationRefused, MlxqError, NotFound, Offline, UsageProblem
from state.fleet import Membership, Node
from state.paths import Home
from tasks.fleet import identity, inviting, trust
from tasks.fleet.identity import FLEET_KEY
from tasks.fleet.node_client import NodeClient, forget_and_tell
from tasks.fleet.token import Invitation
from tasks.plan import fleet as plan
from tasks.system import certificates

SEEN_S = 10.0
"""How long is waited for the first look of the node that invited."""
LOOK_S = 0.3


def reach(invitation: Invitation) -> Node:
    """Return the node that invites, at the first of its addresses that shows the right fingerprint.

    Raises Offline where none answers, Damaged where only other machines do. Nothing secret is sent.
    """
    problems: list[MlxqError] = []
    for address in invitation.addresses:
        try:
            authority = trust.fetch_authority(address, invitation.fingerprint)
        except (Offline, Damaged) as problem:
            problems.append(problem)
            continue
        return Node(invitation.name, "mlxq", address, authority, invitation.fingerprint)
    if other := next((problem for problem in problems if isinstance(problem, Damaged)), None):
        raise other
    raise Offline(
        f"{invitation.name} cannot be reached: {' '.join(problem.message for problem in problems)}",
        done="Nothing was changed.",
        hint=f"mlxq connect network   (on {invitation.name})",
    )


def require_other(home: Home, invitation: Invitation) -> None:
    """Raise UsageProblem where it is this machine that invites."""
    if certificates.read(home.tls) and trust.fingerprint(trust.own_authority(home)) == invitation.fingerprint:
        raise UsageProblem(
            "This invitation is of this machine itself.",
            done="It is still valid.",
            hint="mlxq node join TOKEN   (on another machine)",
        )


def check(db: Database, inviter: Node, invitation: Invitation, version: str) -> None:
    """Ask whether the invitation is valid and this node may join by it; it is not used up.

    This node's authority is made where there is none. Raises the error that the inviter answers, OSError.
    """
    certificates.ensure(db.home.tls, certificates.own_names("0.0.0.0"), datetime.now(UTC))  # noqa: S104 (all that it may have)
    request = _request(db, invitation, version) | {"check": True, "key": f"sk-mlxq-{'0' * 43}"}
    with NodeClient(inviter, "") as client:
        try:
            client.ask("POST", "/fleet/v1/join", request)
        except InvitationRefused as problem:
            if any(membership.name == inviter.name for membership in fleet.memberships(db)):
                problem.done, problem.hint = (
                    f"This machine is in the fleet of {inviter.name} already.",
                    "mlxq node list",
                )
            raise


def join(db: Database, inviter: Node, invitation: Invitation, addresses: tuple[str, ...], version: str) -> Membership:
    """Join the fleet: give the inviter a key and the authority of this node, and store the key of the membership.

    A key that was made for it is revoked again where the inviter refuses. Raises the error that the inviter answers.
    """
    home, name = db.home, f"{FLEET_KEY}{invitation.name}"
    key = inviting.make_key(home, name, "fleet")
    request = _request(db, invitation, version) | {"addresses": list(addresses), "key": key}
    try:
        with NodeClient(inviter, "") as client:
            answer = client.ask("POST", "/fleet/v1/join", request)
    except MlxqError:
        inviting.revoke_key(home, name)
        raise
    addresses_known = tuple(dict.fromkeys([inviter.address, *invitation.addresses]))
    membership = Membership(invitation.name, addresses_known, inviter.authority, inviter.fingerprint, addresses)
    fleet.put_key(home, invitation.name, str(answer["key"]), member=True)
    fleet.put_membership(db, membership)
    return membership


def _request(db: Database, invitation: Invitation, version: str) -> dict[str, Any]:
    return {
        "secret": invitation.secret,
        "name": identity.own_name(db.home),
        "version": version,
        "protocol": plan.PROTOCOL,
        "addresses": list(invitation.addresses),
        "authority": trust.own_authority(db.home),
    }


def await_seen(db: Database, membership: Membership, limit_s: float = SEEN_S) -> Mapping[str, Any]:
    """Wait until the inviter has looked at this node; return what it says then: {"seen_at", "problem", "state"}."""
    until = time.monotonic() + limit_s
    with client_of(db, membership) as client:
        while True:
            answer = client.ask("GET", "/fleet/v1/member")
            if answer.get("seen_at") or answer.get("problem") or time.monotonic() > until:
                return answer
            time.sleep(LOOK_S)


def client_of(db: Database, membership: Membership) -> NodeClient:
    """Return the client of the node that invited. Raises Damaged, MlxqError."""
    node = Node(
        membership.name,
        "mlxq",
        membership.addresses[0],
        membership.authority,
        membership.fingerprint,
        addresses=membership.addresses,
    )
    return NodeClient(node, fleet.key(db.home, membership.name, member=True))


def announce(db: Database, membership: Membership, addresses: tuple[str, ...]) -> None:
    """Report to the node that invited where this one is now. Raises MlxqError."""
    with client_of(db, membership) as client:
        client.ask("PUT", "/fleet/v1/member", {"addresses": list(addresses)})
    fleet.announced(db, membership.name, addresses)


def forget(db: Database, name: str) -> bool:
    """Forget a fleet, and revoke the key that its node had here; return whether this node belonged to it."""
    inviting.revoke_key(db.home, f"{FLEET_KEY}{name}")
    fleet.forget_requests(db, f"{FLEET_KEY}{name}")
    return fleet.remove_membership(db, name)


def leave(db: Database, name: str) -> str | None:
    """Leave a fleet, and tell the node that invited; return why it could not be told, None where it was.

    Raises NotFound.
    """
    membership = next((entry for entry in fleet.memberships(db) if entry.name == name), None)
    if membership is None:
        raise NotFound(f"This node is in no fleet of {name}.", hint="mlxq node list")
    return forget_and_tell(lambda: client_of(db, membership), lambda: forget(db, name), "DELETE", "/fleet/v1/member")
