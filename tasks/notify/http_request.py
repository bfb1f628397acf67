"""One HTTP request with a hard end, whatever the server does: it may hang, drip, redirect or close.

Redirects are not followed, so that a message with a signature or a token goes nowhere but where the user sent it; the
answer's body is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from state.errors import MlxqError, Offline

LIMIT_S = 10.0
"""Seconds for everything, from the look-up of the name to the answer's headers."""
PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that may change by themselves."""


def send(
    target: str, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"", limit_s: float = LIMIT_S
) -> None:
    """Send a request to the address of a target and return when its server took it.

    Raises Offline when trying again can help, and MlxqError when it cannot; neither says the address.
    """
    try:
        status = asyncio.run(_status(method, url, body, headers, limit_s))
    except TimeoutError:
        raise Offline(f"The notification target {target} did not answer within {limit_s:g} s.") from None
    judge(target, status)


async def _status(method: str, url: str, body: bytes, headers: Mapping[str, str], limit_s: float) -> int:
    """Return the answer's status, 0 when there was none. Raises TimeoutError."""
    import httpx

    try:
        async with (
            httpx.AsyncClient(follow_redirects=False, timeout=None) as client,  # noqa: S113 (the next line)
            asyncio.timeout(limit_s),  # after the client has read its certificates, which are no server's delay
            client.stream(method, url, content=body, headers=dict(headers)) as response,
        ):
            return response.status_code
    except TimeoutError:  # an OSError too
        raise
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return 0


def judge(target: str, status: int) -> None:
    """Raise what a status means for the delivery; 0 is no answer. Raises Offline, MlxqError."""
    if not status:
        raise Offline(f"The notification target {target} cannot be reached, or closed the connection.")
    if status >= 500 or status in PASSING:  # noqa: PLR2004 (a server's own failure)
        raise Offline(f"The notification target {target} answered with status {status}.")
    if 300 <= status < 400:  # noqa: PLR2004 (redirects)
        raise MlxqError(
            f"The notification target {target} redirects (status {status}), which mlxq does not follow.",
            hint=f"mlxq notify remove {target}",
        )
    if not 200 <= status < 300:  # noqa: PLR2004 (success)
        raise MlxqError(f"The notification target {target} refused the message with status {status}.")
