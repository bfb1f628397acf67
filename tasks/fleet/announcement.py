"""What machines in this network announce of themselves by Bonjour, read by an allow-list. Pure.

Anyone in the network can announce anything: names that are none, addresses elsewhere and texts for a terminal come no
further than this file. An announcement is a hint where to look, and no reason to trust.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from state import fleet
from state.classes import dataclass
from tasks.plan.fleet import version

SERVICE = "_mlxq._tcp.local."
MOST_ADDRESSES = 8
LARGEST_PORT = 65535
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SeenMachine:
    """A machine that says it runs mlxq."""

    name: str
    version: str
    fingerprint: str
    """SHA-256 of its authority's certificate, in hex, as it says."""
    addresses: tuple[str, ...]
    """As HOST:PORT."""


def properties(name: str, version: str, fingerprint: str) -> dict[str, str]:
    """Return what this machine announces beside its address: nothing secret."""
    return {"name": name, "version": version, "fingerprint": fingerprint}


def read(announced: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None) -> SeenMachine | None:
    """Return a machine that was announced; None for what can be none."""
    texts = {
        field: (announced.get(field.encode()) or b"").decode("ascii", "replace") for field in properties("", "", "")
    }
    private = [text for text in addresses if _is_private(text)][:MOST_ADDRESSES]
    if not (fleet.NAME.fullmatch(texts["name"]) and _FINGERPRINT.fullmatch(texts["fingerprint"])):
        return None
    if not private or port is None or not 0 < port <= LARGEST_PORT:
        return None
    where = tuple(f"{address}:{port}" for address in private)
    return SeenMachine(texts["name"], version(texts["version"]), texts["fingerprint"], where)


def _is_private(text: str) -> bool:
    """Return whether a text is an IPv4 address of a private network."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_private and not address.is_unspecified
