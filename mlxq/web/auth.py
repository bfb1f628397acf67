"""Who may see the page. Pure: keys and a clock in, tokens and verdicts out.

One key signs everything. `mlxq dashboard` makes a link that opens once, within a minute; it becomes a cookie for a
month; the cookie becomes the token that every action carries. Nothing is stored: a new key ends every session.

Known limit: browsers keep cookies by host, not by port, so a web server that somebody else runs on 127.0.0.1 and that
is visited in the same browser is sent this one too.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

LINK_S = 60
COOKIE_S = 30 * 86_400
LINK, COOKIE, ACTION = "link", "cookie", "action"


def _sign(key: str, purpose: str, text: str) -> str:
    """Give the HMAC-SHA256 of `text` for one purpose; a link's never passes for a cookie's."""
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
    """Make the token of a link that opens the page once, within 60 s."""
    return _issue(key, LINK, now + LINK_S)


class PageAuth:
    """Lets the person in, once a link, and anybody with their cookie."""

    def __init__(self, key: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock
        self._opened_at = clock()
        self._used: dict[str, float] = {}

    def enter(self, token: str) -> str | None:
        """Turn a link's token into a cookie; None when it is false, late, or was used.

        A link made before this process began is refused: an earlier one may have let somebody in with it.
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
        """Tell whether a cookie is ours and still good."""
        return cookie is not None and _valid(self._key, COOKIE, cookie, self._clock())

    def action_token(self, cookie: str) -> str:
        """Give what a session's actions must carry; a page of another origin cannot read it."""
        return _sign(self._key, ACTION, cookie)

    def may_act(self, cookie: str, token: str) -> bool:
        """Tell whether an action carries its session's token."""
        return hmac.compare_digest(token.encode(), self.action_token(cookie).encode())

    def reads_figures(self, bearer: str) -> bool:
        """Tell whether a scraper's key is right."""
        return hmac.compare_digest(bearer.encode(), self._key.encode())
