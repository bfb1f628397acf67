"""The program that fetches one image: `python -I fetch.py`, the URL on standard input, the image on standard output.

A process of its own, as the gateway itself connects to engines and the cloud alone (egress.py). It asks public
addresses only, the very ones that it has looked up, over https at port 443, without a proxy, and follows few redirects
under the same rules. It imports nothing of mlxq. It exits with 1 where it has no image, and says why on standard error.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import sys
import time
from urllib.parse import urljoin, urlsplit

LARGEST_BYTES = 20 * 2**20
LIMIT_S = 20.0
CONNECT_S = 5.0
REDIRECTS = 3
PORT = 443
TYPES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp"})
_REDIRECTED, _CHUNK = (301, 302, 303, 307, 308), 1 << 16
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NoImage(Exception):
    """There is no image there that may be fetched. The message is for the user who sent the request."""


def is_public(address: str) -> bool:
    """Return whether an address is one of the public internet, also where it carries another one inside."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and (
        parsed.ipv4_mapped or parsed.sixtofour or parsed.teredo or parsed in _NAT64
    ):
        return False
    return parsed.is_global and not parsed.is_multicast


def checked(url: str) -> tuple[str, str]:
    """Return the host and path of a URL that may be asked for. Raises NoImage."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise NoImage("is no valid URL")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme != "https" or not parts.hostname or port not in (None, PORT) or parts.username is not None:
        raise NoImage("must be https, at port 443, without a name and password")
    return parts.hostname, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def addresses(host: str) -> list[str]:
    """Return the addresses of a host. Raises NoImage unless all of them are public."""
    try:
        entries = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise NoImage(f"leads to {host}, which has no address") from problem
    numbers = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if not numbers or not all(map(is_public, numbers)):
        raise NoImage(f"leads to {host}, which is no public address")
    return numbers


class _CheckedConnection(http.client.HTTPSConnection):
    """A connection to an address that was checked; the certificate must be the host's."""

    def __init__(self, host: str, address: str, context: ssl.SSLContext) -> None:
        super().__init__(host, PORT, timeout=CONNECT_S, context=context)
        self._address = address
        self._tls = context

    def connect(self) -> None:
        """Connect without another look-up, whose answer may be another one."""
        plain = socket.create_connection((self._address, PORT), CONNECT_S)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def fetch(url: str, deadline: float) -> tuple[str, bytes]:
    """Return the media type and the bytes of an image. Raises NoImage; OSError, http.client.HTTPException."""
    context = ssl.create_default_context()
    for _ in range(REDIRECTS + 1):
        host, path = checked(url)
        connection = _CheckedConnection(host, addresses(host)[0], context)
        try:
            connection.request("GET", path, headers={"Accept": ", ".join(sorted(TYPES)), "User-Agent": "mlxq"})
            response = connection.getresponse()
            if response.status not in _REDIRECTED:
                return _image(response, deadline)
            url = urljoin(url, response.getheader("location") or "")
        finally:
            connection.close()
    raise NoImage("is redirected too often")


def _image(response: http.client.HTTPResponse, deadline: float) -> tuple[str, bytes]:
    kind = (response.getheader("content-type") or "").partition(";")[0].strip().lower()
    if response.status != http.client.OK:
        raise NoImage(f"is answered with HTTP {response.status}")
    if kind not in TYPES:
        raise NoImage("leads to no PNG, JPEG, GIF or WebP image")
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > LARGEST_BYTES:
            raise NoImage(f"leads to more than {LARGEST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise NoImage(f"did not come within {LIMIT_S:.0f} s")
    return kind, bytes(content)


def main() -> None:
    """Write the media type, a line feed, and the image."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    try:
        kind, content = fetch(sys.stdin.readline().strip(), time.monotonic() + LIMIT_S)
    except NoImage as problem:
        sys.exit(str(problem))
    except ssl.SSLCertVerificationError:
        sys.exit("leads to a host whose certificate is not valid")
    except (OSError, http.client.HTTPException):
        sys.exit("leads to a host that does not answer")
    sys.stdout.buffer.write(kind.encode() + b"\n" + content)


if __name__ == "__main__":
    main()
