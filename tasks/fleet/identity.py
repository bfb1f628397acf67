"""Who this machine is in a fleet: its name, its addresses, and the names of the keys that nodes have."""

from __future__ import annotations

import platform
import re

from state import fleet, settings
from state.errors import NotRunning
from state.paths import Home
from tasks.fleet import token
from tasks.system import certificates

FLEET_KEY, MEMBER_KEY = "fleet.", "node."
"""How the names of keys begin: of one that this node gave to the node that invited it, and of one for a member."""


def own_name(home: Home) -> str:
    """Return this machine's name in a fleet: the setting node-name, else what its host's name comes to."""
    chosen: str = settings.load(home)["node-name"]
    name = chosen or re.sub(r"[^a-z0-9-]+", "-", platform.node().partition(".")[0].lower()).strip("-")[:31]
    return name if fleet.NAME.fullmatch(name) else "node"


def is_open(home: Home) -> bool:
    """Return whether other machines reach the gateway, encrypted."""
    values = settings.load(home)
    return values["gateway-host"] != "127.0.0.1" and values["gateway-tls"]


def addresses(home: Home) -> tuple[str, ...]:
    """Return where other nodes reach this one, as https://HOST:PORT, addresses first: the setting, else all it has.

    Raises NotRunning where it has none of a private network.
    """
    values = settings.load(home)
    host: str = values["gateway-host"]
    own = [name for name in certificates.own_names(host) if name not in {"localhost", "127.0.0.1"}]
    names: list[str] = values["node-addresses"] or sorted(own, key=lambda name: not name[0].isdigit())
    if not names:
        raise NotRunning(
            "This machine has no address of a private network.", hint="mlxq config set node-addresses ADDRESS"
        )
    return tuple(f"https://{name}:{values['litellm-port']}" for name in names[: token.MOST_ADDRESSES])
