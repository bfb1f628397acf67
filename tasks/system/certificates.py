"""The certificate by which other machines know the gateway, from an authority of this home's own.

Who trusts that authority trusts it for names and addresses of private networks alone: the constraints are in its
certificate (RFC 5280, 4.2.1.10), so that a stolen key speaks for no site of the internet.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil

from state import files

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""Safari and Chrome take no longer one from authorities they know; 825 days are Apple's limit for others (HT103769)."""
RENEW_DAYS = 30
PRIVATE_NETWORKS = (
    "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
    "::1/128", "fc00::/7", "fe80::/10",
)  # fmt: skip
"""Loopback, RFC 1918, link-local, RFC 6598 (which Tailscale uses), and their like of IPv6."""
PRIVATE_DOMAINS = ("localhost", "local")
"""What Bonjour resolves (RFC 6762), and this machine itself."""
_writing = threading.Lock()


@dataclass(frozen=True)
class Certificate:
    """The server's certificate, as far as it is of use without parsing it."""

    names: tuple[str, ...]
    """DNS names and addresses that it is valid for."""
    expires: str
    """ISO 8601."""
    authority: str
    """SHA-256 of the authority's certificate, in hex."""

    @property
    def expires_at(self) -> datetime:
        """Return when it expires."""
        return datetime.fromisoformat(self.expires)


def authority_file(folder: Path) -> Path:
    """Return the certificate that other machines are to trust."""
    return folder / "ca.pem"


def server_file(folder: Path) -> Path:
    """Return the gateway's key with its certificates, in one file so that they are changed together."""
    return folder / "server.pem"


def read(folder: Path) -> Certificate | None:
    """Return what is in place; None where nothing whole is."""
    try:
        document = json.loads((folder / "certificate.json").read_bytes())
        certificate = Certificate(tuple(document["names"]), document["expires"], document["authority"])
        whole = (
            server_file(folder).exists()
            and certificate.expires_at.tzinfo is not None
            and _fingerprint(folder) == certificate.authority
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return certificate if whole else None


def _fingerprint(folder: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority_file(folder).read_text())).hexdigest()


def own_names(host: str) -> list[str]:
    """Return the names and addresses of this machine, as far as they are private, that a gateway on `host` has."""
    name = socket.gethostname().lower().partition(".")[0]
    addresses = [host]
    if host == "0.0.0.0":  # noqa: S104 (the setting's word for all addresses)
        entries = [entry for card in psutil.net_if_addrs().values() for entry in card]
        addresses = sorted(entry.address for entry in entries if entry.family == socket.AF_INET)
    return ["localhost", f"{name}.local", *filter(is_private, dict.fromkeys(["127.0.0.1", *addresses]))]


def is_private(address: str) -> bool:
    """Return whether an address is of a private network."""
    parsed = ipaddress.ip_address(address)
    networks = map(ipaddress.ip_network, PRIVATE_NETWORKS)
    return any(parsed in network for network in networks if network.version == parsed.version)


def ensure(folder: Path, names: Sequence[str], now: datetime) -> Certificate:
    """Make sure that there is a certificate for `names` that is valid for RENEW_DAYS more, and return it.

    The authority is made once and kept, as other machines trust it. Raises OSError.
    """
    wanted = tuple(dict.fromkeys(names))
    with _writing:
        certificate = read(folder)
        if certificate and certificate.names == wanted and certificate.expires_at - now > timedelta(days=RENEW_DAYS):
            return certificate
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority, key = _authority(folder, now)
        return _issue(folder, authority, key, wanted, now)


def _authority(folder: Path, now: datetime) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """Return the authority; a new one where there is none, it expires, or it cannot be read."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(authority_file(folder).read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        lasts = certificate.not_valid_after_utc - now > timedelta(days=SERVER_DAYS)
        if lasts and certificate.public_key() == key.public_key():
            return certificate, cast("EllipticCurvePrivateKey", key)
    except (OSError, ValueError, TypeError):
        pass
    return _new_authority(folder, now)


def _new_authority(folder: Path, now: datetime) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509

    key = _new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"mlxq on {socket.gethostname()[:48]}")])
    permitted: list[x509.GeneralName] = [x509.DNSName(domain) for domain in PRIVATE_DOMAINS]
    permitted += [x509.IPAddress(ipaddress.ip_network(network)) for network in PRIVATE_NETWORKS]
    builder = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, _sha256())
    files.replace(folder / "ca.key", _private(key), 0o600)
    files.replace(authority_file(folder), _public([certificate]), 0o600)
    return certificate, key


def _issue(
    folder: Path, authority: x509.Certificate, signer: EllipticCurvePrivateKey, names: Sequence[str], now: datetime
) -> Certificate:
    """Sign a certificate of the server, and put it in place; its entry is written last."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = _new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mlxq gateway")])
    builder = (
        _builder(subject, authority.subject, key, now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    certificate = builder.sign(signer, _sha256())
    files.replace(server_file(folder), _private(key) + _public([certificate, authority]), 0o600)
    entry = Certificate(tuple(names), certificate.not_valid_after_utc.isoformat(), _fingerprint(folder))
    files.replace_private(folder / "certificate.json", json.dumps(asdict(entry), indent=1))
    return entry


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    """Begin a certificate. It is valid since yesterday: clocks of other machines are late."""
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - timedelta(days=1))
        .not_valid_after(now.astimezone(UTC) + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _sha256() -> hashes.SHA256:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _private(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(chain: Sequence[x509.Certificate]) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
