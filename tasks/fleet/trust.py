"""Whom a node trusts: the one authority whose fingerprint came with the invitation, and no other, for one node each.

The authority's certificate is fetched over a handshake that proves nothing, with nothing secret sent; it counts only
where its SHA-256 is the one of the invitation. The host's name is not compared: an authority of mlxq signs for its own
machine alone, whose addresses change.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl

import httpx

from state.errors import Damaged, NotRunning, Offline
from state.paths import Home
from tasks.system import certificates

CONNECT_S = 2.0
READ_S = 5.0
MOST_BYTES = 1 << 20
"""The most that is read of an answer."""
AUTHORITY = "/fleet/v1/authority"
LONGEST_PEM = 8_192


def fingerprint(pem: str) -> str:
    """Return the SHA-256 of a certificate, in hex. Raises ValueError for what is none."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()


def own_authority(home: Home) -> str:
    """Return the certificate of this machine's authority, as PEM. Raises NotRunning where there is none yet."""
    if certificates.read(home.tls) is None:
        raise NotRunning("The gateway has no certificate yet: it is made as the gateway starts.", hint="mlxq up")
    return certificates.authority_file(home.tls).read_text(encoding="ascii")


def pinned(authority: str) -> ssl.SSLContext:
    """Return a context that trusts this authority alone. Raises Damaged where the text is no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    try:
        context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as problem:
        raise Damaged(f"The authority of a node is no certificate: {problem}.") from problem
    return context


def fetch_authority(address: str, wanted: str) -> str:
    """Return the authority's certificate of the node at an address. Raises Offline, and Damaged for another one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with client(context) as unverified:
        try:
            pem = read(unverified, "GET", f"{address}{AUTHORITY}").text
        except httpx.HTTPError as problem:
            raise Offline(f"{address} does not answer: {reason(problem)}.", hint="mlxq node invite") from problem
    try:
        matches = len(pem) <= LONGEST_PEM and hmac.compare_digest(fingerprint(pem), wanted)
    except ValueError:
        matches = False
    if not matches:
        raise Damaged(
            f"The machine at {address} is not the one that invited: its certificate has another fingerprint.",
            done="Nothing was sent to it.",
            hint="mlxq node invite   (on the machine of the fleet, for a new token)",
        )
    return pem


def client(context: ssl.SSLContext, key: str = "") -> httpx.Client:
    """Return a client for one node: no proxy, no redirect, short limits."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Timeout(READ_S, connect=CONNECT_S)
    return httpx.Client(verify=context, trust_env=False, follow_redirects=False, timeout=limits, headers=headers)


def read(asking: httpx.Client, method: str, url: str, content: bytes = b"", **headers: str) -> httpx.Response:
    """Return an answer, of which no more than MOST_BYTES are read. Raises httpx.HTTPError."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with asking.stream(method, url, content=content, headers=named) as response:
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise httpx.RemoteProtocolError(f"its answer has more than {MOST_BYTES} bytes")
        return httpx.Response(response.status_code, headers=_plain(response), content=bytes(body))


def _plain(response: httpx.Response) -> dict[str, str]:
    """Return the one header that is used: what was decoded must not be decoded again."""
    return {"content-type": response.headers.get("content-type", "")}


def reason(problem: Exception) -> str:
    """Return in words why a node could not be asked."""
    if isinstance(problem, httpx.TimeoutException):
        return f"nothing within {CONNECT_S:g} s" if isinstance(problem, httpx.ConnectTimeout) else "it was too slow"
    text = str(problem).partition("] ")[2].partition(" (_ssl")[0] if "] " in str(problem) else str(problem)
    return text.rstrip(".") or type(problem).__name__


def is_other_authority(problem: Exception) -> bool:
    """Return whether the certificate that was shown is not of the authority that is trusted."""
    return "CERTIFICATE_VERIFY_FAILED" in str(problem)
