"""The certificate of the gateway, as the settings want it: made before a gateway starts, renewed while it serves."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from datetime import UTC, datetime

from state import settings
from state.errors import GatewayFailed, MlxqError, UsageProblem
from state.paths import Home
from state.settings import Settings
from tasks.queue import tick
from tasks.runtime import runtime
from tasks.system import certificates

LOOK_S = 300.0
"""A machine gets another address when it joins another network."""


def ensure(home: Home, values: Settings, setting: str = "gateway-host") -> str | None:
    """Return the folder of the certificate; None where the settings want none, or no other machine can ask.

    `setting`: the one that says where the service listens; the gateway and the front have one certificate.

    Raises UsageProblem for an address that is not of a private network, GatewayFailed.
    """
    host: str = values[setting]
    address = ipaddress.ip_address(host)
    if not values["gateway-tls"] or address.is_loopback:
        return None
    if not address.is_unspecified and not certificates.is_private(host):
        raise UsageProblem(
            f"{setting} is {host}, and mlxq's certificates are for private networks alone.",
            hint="mlxq config set gateway-tls false",
        )
    try:
        certificates.ensure(home.tls, _names(values), datetime.now(UTC))
    except OSError as problem:
        raise GatewayFailed(f"The gateway's certificate cannot be written: {problem}.", hint="mlxq doctor") from problem
    return str(home.tls)


def _names(values: Settings) -> list[str]:
    """Return the names and addresses of the services that other machines can ask."""
    hosts = [values["gateway-host"], *([values["front-host"]] if values["front"] else [])]
    opened = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
    return list(dict.fromkeys(name for host in opened for name in certificates.own_names(host)))


@tick("renew the certificate", LOOK_S)
def renew() -> None:
    """Renew the certificate when it expires soon, or this machine has other addresses; the gateway reads it again."""
    with suppress(MlxqError):  # the next start of the gateway says it
        values = settings.load(runtime.home)
        ensure(runtime.home, values)
        if values["front"]:
            ensure(runtime.home, values, "front-host")
