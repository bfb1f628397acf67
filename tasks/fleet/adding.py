"""Servers that speak OpenAI's API and no more, such as plain vLLM, as nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from state import fleet
from state.db import Database
from state.errors import MlxqError, NotFound, Offline, UsageProblem
from state.fleet import Node, ServedModel
from tasks.fleet import identity
from tasks.fleet.node_client import NodeClient


def add(db: Database, url: str, key: str, name: str | None, groups: Mapping[str, str]) -> Node:
    """Add a server as a node, once it has listed its models with the key; return it.

    `groups`: tier -> one of its models, which is offered by that name too. Raises UsageProblem, Offline, NotFound,
    MlxqError where it refuses the key.
    """
    address, host = _address(url)
    own = name or re.sub(r"[^a-z0-9-]+", "-", host).strip("-")[:31]
    if not fleet.NAME.fullmatch(own):
        raise UsageProblem(f"{own!r} is no name for a node: small letters, digits and dashes.")
    if own == identity.own_name(db.home) or fleet.find(db, own):
        raise UsageProblem(f"There is a node {own} in this fleet already.", hint="mlxq node add --name NAME …")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageProblem("A key has printable ASCII characters and no blanks.")
    offers = {group: ServedModel(model, 0, 1) for group, model in groups.items()}
    node = Node(own, "openai", address, serves=offers, addresses=(address,))
    with NodeClient(node, key) as client:
        look = client.look()
    if look.failure == "refused":
        raise MlxqError(f"{address} refuses the key; it was not added.", hint="mlxq node add --openai URL --key -")
    if look.status is None:
        raise Offline(f"{address} was not added: {look.words}.", hint="mlxq node add --openai URL --key -")
    if absent := [model for group, model in groups.items() if group not in look.status.serves]:
        names = ", ".join(look.status.serves)
        raise NotFound(f"{address} serves no model {absent[0]!r}; it serves {names}.")
    node = Node(own, "openai", address, serves=look.status.serves, seen_at=db.now(), addresses=(address,))
    fleet.put_key(db.home, own, key)
    fleet.put(db, node)
    return node


def _address(url: str) -> tuple[str, str]:
    """Return a server's base URL without /v1, and its host. Raises UsageProblem."""
    try:
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageProblem(f"{url!r} is no URL of a server, such as http://10.0.0.9:8000.")
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}", parts.hostname.lower()
