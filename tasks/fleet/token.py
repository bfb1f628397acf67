"""The invitation that is carried from one machine to another by hand: where to ask, whom to trust, a secret for once.

Pure. Who has the text may join until it is used or ten minutes have passed, by the clock of the node that invites.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from state import fleet, settings
from state.errors import UsageProblem

PREFIX = "mlxq1."
LONGEST = 2_000
MOST_ADDRESSES = 16
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{40,64}")
_HOST = re.compile(settings.HOST_NAME)


@dataclass(frozen=True)
class Invitation:
    """What a token says."""

    name: str
    """Of the node that invites."""
    addresses: tuple[str, ...]
    """Where it is, as https://HOST:PORT."""
    fingerprint: str
    """SHA-256 of its authority's certificate, in hex."""
    secret: str

    def text(self) -> str:
        """Return the token."""
        content = {"n": self.name, "a": list(self.addresses), "f": self.fingerprint, "s": self.secret}
        packed = json.dumps(content, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def new_secret() -> str:
    """Return 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return what is stored of a secret: it has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(text: str) -> Invitation:
    """Return what a token says. Raises UsageProblem for one that is cut off, or none."""
    try:
        return _parse("".join(text.split()))
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UsageProblem(
            "This is no invitation, or not all of one: it begins with mlxq1. and is one word.",
            hint="mlxq node invite   (on a machine of the fleet)",
        ) from problem


def _parse(text: str) -> Invitation:
    if not text.startswith(PREFIX) or len(text) > LONGEST:
        raise ValueError(text[:10])
    packed = text.removeprefix(PREFIX)
    content: dict[str, Any] = json.loads(base64.b64decode(packed + "=" * (-len(packed) % 4), b"-_", validate=True))
    invitation = Invitation(content["n"], addresses(content["a"]), content["f"], content["s"])
    for value, pattern in (
        (invitation.name, fleet.NAME),
        (invitation.fingerprint, _FINGERPRINT),
        (invitation.secret, _SECRET),
    ):
        if not pattern.fullmatch(value):
            raise ValueError(value)
    return invitation


def addresses(urls: Sequence[Any]) -> tuple[str, ...]:
    """Return addresses that came from another machine, if each is https://HOST:PORT. Raises ValueError."""
    if isinstance(urls, str) or not 0 < len(urls) <= MOST_ADDRESSES:
        raise ValueError("addresses")
    return tuple(map(_address, urls))


def _address(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError("address")
    parts = urlsplit(text)
    if parts.scheme != "https" or parts.port is None or text != f"https://{parts.hostname}:{parts.port}":
        raise ValueError(text)
    return text if _is_host(str(parts.hostname)) else _refuse(text)


def _is_host(host: str) -> bool:
    """Return whether a host is an IPv4 address or a name; what looks like an address must be one."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return bool(_HOST.fullmatch(host)) and not host.replace(".", "").isdigit()
    return True


def _refuse(text: str) -> str:
    raise ValueError(text)
