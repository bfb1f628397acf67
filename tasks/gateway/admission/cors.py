"""Which web pages' scripts may read answers: those of the setting allowed-origins, none without it."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

_METHODS = "GET, POST, OPTIONS"
_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, x-stainless-*"
_DAY_S = 86_400


class Cors:
    """The headers that browsers ask for (Fetch standard, 3.2)."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = origins

    def headers(self, scope: Scope) -> Mapping[str, str]:
        """Return the headers of an answer, of a refusal too: none for an origin that is not allowed."""
        origin = _header(scope, b"origin")
        if not self._origins or not ("*" in self._origins or origin in self._origins):
            return {}
        exposed = "x-request-id, request-id, x-mlxq-tier, x-mlxq-tried, retry-after"
        return {
            "access-control-allow-origin": origin or "*",
            "vary": "origin",
            "access-control-expose-headers": exposed,
        } | (self._preflight(scope) if self.is_preflight(scope) else {})

    def is_preflight(self, scope: Scope) -> bool:
        """Return whether a browser asks if it may ask; that carries no key."""
        if scope["method"] != "OPTIONS" or not _header(scope, b"access-control-request-method"):
            return False
        origin = _header(scope, b"origin")
        return bool(self._origins) and ("*" in self._origins or origin in self._origins)

    def _preflight(self, scope: Scope) -> dict[str, str]:
        return {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": _header(scope, b"access-control-request-headers") or _HEADERS,
            "access-control-max-age": str(_DAY_S),
        }


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for header, value in scope["headers"] if header == name), "")
