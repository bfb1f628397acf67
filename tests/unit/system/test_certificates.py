"""The gateway's certificate: who believes it, when it is renewed, and what its authority can never speak for."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.system import certificates

NOW = datetime.now(UTC)
NAMES = ["localhost", "mini.local", "127.0.0.1", "192.168.1.20"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.ensure(tmp_path / "tls", NAMES, NOW)
    return tmp_path / "tls"


def believed(folder: Path, name: str, authority: Path | None = None) -> bool:
    """Return whether a client that trusts the authority completes a handshake, and whom it takes for `name`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.server_file(folder))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority or certificates.authority_file(folder))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_who_trusts_the_authority_believes_each_of_its_names(folder: Path, name: str) -> None:
    assert believed(folder, name)


@pytest.mark.parametrize("name", ["other.local", "192.168.1.21", "example.com"])
def test_it_is_believed_for_no_other_name(folder: Path, name: str) -> None:
    assert not believed(folder, name)


@pytest.mark.parametrize("name", ["example.com", "local.example.com", "8.8.8.8"])
def test_the_authority_cannot_speak_for_the_internet(folder: Path, name: str) -> None:
    """Its constraints are its own: a certificate that its key signs for such a name is refused."""
    certificates.ensure(folder, [name], NOW)

    assert name in (certificates.read(folder) or certificates.Certificate((), "", "")).names
    assert not believed(folder, name)


def test_it_stays_as_it_is_until_it_must_change(folder: Path) -> None:
    """Renewed a month before its end and for other addresses, by the same authority, which other machines trust."""
    trusted, first = certificates.authority_file(folder).read_bytes(), certificates.server_file(folder).read_bytes()
    days = certificates.SERVER_DAYS - certificates.RENEW_DAYS

    certificates.ensure(folder, NAMES, NOW + timedelta(days=days - 1))
    assert certificates.server_file(folder).read_bytes() == first
    certificates.ensure(folder, NAMES, NOW + timedelta(days=days + 1))
    second = certificates.server_file(folder).read_bytes()
    assert second != first
    certificates.ensure(folder, [*NAMES, "10.0.0.7"], NOW)
    assert certificates.server_file(folder).read_bytes() != second
    assert believed(folder, "10.0.0.7")
    assert certificates.authority_file(folder).read_bytes() == trusted


def test_an_authority_near_its_end_is_replaced(folder: Path) -> None:
    trusted = certificates.authority_file(folder).read_bytes()
    late = NOW + timedelta(days=certificates.AUTHORITY_DAYS - certificates.SERVER_DAYS + 1)

    assert certificates.ensure(folder, NAMES, late).expires_at > late + timedelta(days=certificates.SERVER_DAYS - 1)
    assert certificates.authority_file(folder).read_bytes() != trusted


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.pem", "certificate.json"])
@pytest.mark.parametrize("content", [None, b"", b"half a fi", b"{}"])
def test_a_damaged_file_is_made_again(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    certificates.ensure(folder, [*NAMES, "10.0.0.7"], NOW)
    assert believed(folder, "10.0.0.7")


def test_only_the_owner_reads_any_of_it(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("address", "private"),
    [("10.1.2.3", True), ("172.31.0.1", True), ("100.100.0.1", True), ("172.32.0.1", False), ("8.8.8.8", False)],
)
def test_private_addresses(address: str, private: bool) -> None:
    assert certificates.is_private(address) is private


def test_own_names_are_private_and_have_the_host() -> None:
    assert {"localhost", "127.0.0.1", "192.168.7.7"} <= set(certificates.own_names("192.168.7.7"))
    assert "203.0.113.7" not in certificates.own_names("203.0.113.7")
    addresses = [name for name in certificates.own_names("0.0.0.0") if name[0].isdigit()]
    assert all(map(certificates.is_private, addresses))
