"""Authentication of the page. Pure: keys and a clock in, tokens and decisions out.

One key signs everything. `mlxq dashboard` creates a link that works once, within a minute. The link is exchanged for
a cookie, valid for a month, and the cookie determines the token that every action carries. Nothing is stored: a new key
ends every session.

Known limit: browsers store cookies by host, not by port, so another web server on 127.0.0.1 that is visited in the same
browser receives this cookie too.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

LINK_S = 60
COOKIE_S = 30 * 86_400
LINK, COOKIE, ACTION, METRICS = "link", "cookie", "action", "metrics"


def _sign(key: str, purpose: str, text: str) -> str:
    """Return the HMAC-SHA256 of `text` for one purpose; a link's signature is not valid for a cookie."""
    return hmac.new(key.encode(), f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _issue(key: str, purpose: str, until: float) -> str:
    text = f"{int(until)}.{secrets.token_urlsafe(16)}"
    return f"{text}.{_sign(key, purpose, text)}"


def _valid(key: str, purpose: str, token: str, now: float) -> bool:
    text, _, signature = token.rpartition(".")
    until = text.partition(".")[0]
    genuine = hmac.compare_digest(signature.encode(), _sign(key, purpose, text).encode())
    return genuine and now < int(until)


def link(key: str, now: float) -> str:
    """Return the token of a link that opens the page once, within 60 s."""
    return _issue(key, LINK, now + LINK_S)


def metrics_key(key: str) -> str:
    """Return the key with which Prometheus reads the metrics; it opens nothing else and lasts as long as `key`."""
    return _sign(key, METRICS, "")


class PageAuth:
    """Exchanges links for cookies and checks cookies and tokens."""

    def __init__(self, key: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock
        self._opened_at = clock()
        self._used: dict[str, float] = {}

    def enter(self, token: str) -> str | None:
        """Return a cookie for a link's token; None if the token is invalid, expired or used.

        A link created before this process started is refused: an earlier process may have accepted it.
        """
        now = self._clock()
        self._used = {used: at for used, at in self._used.items() if now - at < LINK_S}
        if token in self._used or not _valid(self._key, LINK, token, now):
            return None
        if int(token.partition(".")[0]) - LINK_S < int(self._opened_at):
            return None
        self._used[token] = now
        return _issue(self._key, COOKIE, now + COOKIE_S)

    def knows(self, cookie: str | None) -> bool:
        """Return whether a cookie is valid."""
        return cookie is not None and _valid(self._key, COOKIE, cookie, self._clock())

    def action_token(self, cookie: str) -> str:
        """Return the token that a session's actions must carry; a page of another origin cannot read it."""
        return _sign(self._key, ACTION, cookie)

    def may_act(self, cookie: str, token: str) -> bool:
        """Return whether an action carries its session's token."""
        return hmac.compare_digest(token.encode(), self.action_token(cookie).encode())

    def reads_metrics(self, bearer: str) -> bool:
        """Return whether a scraper's key is valid."""
        return hmac.compare_digest(bearer.encode(), metrics_key(self._key).encode())
