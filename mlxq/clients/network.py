"""What a program on another machine needs to know: where the gateway is, and how to trust its certificate."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from state import settings
from state.errors import NotRunning
from state.paths import Home
from tasks.system import certificates
from tasks.system.certificates import Certificate

TRUST: Mapping[str, str] = {
    "macOS": "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain mlxq-ca.pem",
    "Debian, Ubuntu": "sudo cp mlxq-ca.pem /usr/local/share/ca-certificates/mlxq.crt && sudo update-ca-certificates",
    "Python alone": "export SSL_CERT_FILE=$PWD/mlxq-ca.pem",
    "Node alone": "export NODE_EXTRA_CA_CERTS=$PWD/mlxq-ca.pem",
}
"""By where it is trusted, the command to run there."""


@dataclass(frozen=True)
class Network:
    """How other machines reach the gateway."""

    urls: tuple[str, ...]
    authority: Path | None
    """The certificate to trust; None where nothing is encrypted."""
    fingerprint: str
    """SHA-256 of it, in pairs of hex digits; empty where nothing is encrypted."""
    copy: str
    """The command that copies it to another machine."""

    def document(self) -> dict[str, object]:
        """Return it as JSON has it."""
        authority = str(self.authority) if self.authority else None
        return {"urls": list(self.urls), "certificate": authority, "sha256": self.fingerprint or None}


def read(home: Home) -> Network:
    """Return how other machines reach the gateway. Raises NotRunning where it listens on this machine alone."""
    values = settings.load(home)
    host: str = values["gateway-host"]
    if host == "127.0.0.1":
        raise NotRunning("The gateway listens on this machine alone.", hint="mlxq config set gateway-host 0.0.0.0")
    port: int = values["litellm-port"]
    if not values["gateway-tls"]:
        return Network(_urls("http", certificates.own_names(host), port), None, "", "")
    certificate = certificates.read(home.tls)
    if certificate is None:
        raise NotRunning("The gateway has no certificate yet: it is made as the gateway starts.", hint="mlxq up")
    return _encrypted(home, certificate, port)


def _encrypted(home: Home, certificate: Certificate, port: int) -> Network:
    urls, authority = _urls("https", certificate.names, port), certificates.authority_file(home.tls)
    name = urls[0].removeprefix("https://").partition(":")[0]
    digits = certificate.authority.upper()
    pairs = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    return Network(urls, authority, pairs, f"scp {getpass.getuser()}@{name}:{authority} mlxq-ca.pem")


def _urls(scheme: str, names: Sequence[str], port: int) -> tuple[str, ...]:
    """Return the addresses for other machines, by name first."""
    return tuple(f"{scheme}://{name}:{port}/v1" for name in names if name not in {"localhost", "127.0.0.1"})
