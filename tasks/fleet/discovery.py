"""Bonjour: the machines in this network that announce `_mlxq._tcp`, and how this one is announced.

Where a machine is comes of it and nothing else: a machine joins by an invitation, which says whom to trust. Multicast
goes out by the addresses alone at which other machines may ask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from state import settings
from state.paths import Home
from tasks.engines.installed import mlxq_version
from tasks.fleet import announcement
from tasks.fleet.announcement import SERVICE, SeenMachine
from tasks.system import certificates

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

BROWSE_S = 2.0
"""How long is listened for machines: those that run answer within a second."""
MOST_SEEN = 64
"""Announcements that are looked at; a network with more is flooded."""
ANSWER_MS = 700
"""How long one machine may take to say where it is."""
ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 (the setting's word for all addresses)


def service(name: str, addresses: Sequence[str], fingerprint: str) -> ServiceInfo | None:
    """Return the announcement of a machine; None where it has no IPv4 address."""
    from zeroconf import ServiceInfo

    urls = [urlsplit(address) for address in addresses]
    numbers = _numbers([url.hostname or "" for url in urls])
    if not numbers:
        return None
    texts = announcement.properties(name, mlxq_version(), fingerprint)
    return ServiceInfo(SERVICE, f"{name}.{SERVICE}", urls[0].port, properties=texts, parsed_addresses=numbers)


def _numbers(hosts: Sequence[str]) -> list[str]:
    return [host for host in hosts if host.replace(".", "").isdigit()]


def browse(home: Home, limit_s: float = BROWSE_S) -> list[SeenMachine]:
    """Return the machines that say within `limit_s` seconds that they run mlxq, by name. Raises OSError."""
    from zeroconf import Zeroconf

    named: list[str] = settings.load(home)["node-addresses"]
    own = [name for name in certificates.own_names(ALL_ADDRESSES) if not name.startswith("127.")]
    interfaces = _numbers(named or own)
    if not interfaces:
        return []
    with Zeroconf(interfaces=interfaces) as network:
        heard, until = _heard(network, limit_s), time.monotonic() + limit_s
        answers = [_asked(network, name) for name in heard if time.monotonic() < until]
    machines = {(machine.name, machine.fingerprint): machine for machine in answers if machine}
    return sorted(machines.values(), key=lambda machine: (machine.name, machine.fingerprint))


def _heard(network: Zeroconf, limit_s: float) -> list[str]:
    """Return the names that are announced within `limit_s` seconds."""
    from zeroconf import ServiceBrowser, ServiceStateChange

    names: dict[str, None] = {}

    def hear(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:  # noqa: ARG001 (zeroconf's names)
        if state_change is not ServiceStateChange.Removed and len(names) < MOST_SEEN:
            names[name] = None

    browser = ServiceBrowser(network, SERVICE, handlers=[hear])
    time.sleep(limit_s)  # who else is there cannot be awaited
    browser.cancel()
    return list(names)


def _asked(network: Zeroconf, name: str) -> SeenMachine | None:
    """Return where a machine says it is; None where it does not answer, or nothing of it can be true."""
    from zeroconf import BadTypeInNameException

    try:
        info = network.get_service_info(SERVICE, name, timeout=ANSWER_MS)
    except (BadTypeInNameException, ValueError):
        return None
    return announcement.read(info.properties, info.parsed_addresses(), info.port) if info else None
