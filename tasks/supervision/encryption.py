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


def ensure(home: Home, values: Settings) -> str | None:
    """Return the folder of the gateway's certificate; None where the settings want none, or no other machine can ask.

    Raises UsageProblem for an address that is not of a private network, GatewayFailed.
    """
    host: str = values["gateway-host"]
    address = ipaddress.ip_address(host)
    if not values["gateway-tls"] or address.is_loopback:
        return None
    if not address.is_unspecified and not certificates.is_private(host):
        raise UsageProblem(
            f"gateway-host is {host}, and mlxq's certificates are for private networks alone.",
            hint="mlxq config set gateway-tls false",
        )
    try:
        certificates.ensure(home.tls, certificates.own_names(host), datetime.now(UTC))
    except OSError as problem:
        raise GatewayFailed(f"The gateway's certificate cannot be written: {problem}.", hint="mlxq doctor") from problem
    return str(home.tls)


@tick("renew the certificate", LOOK_S)
def renew() -> None:
    """Renew the certificate when it expires soon, or this machine has other addresses; the gateway reads it again."""
    with suppress(MlxqError):  # the next start of the gateway says it
        ensure(runtime.home, settings.load(runtime.home))
