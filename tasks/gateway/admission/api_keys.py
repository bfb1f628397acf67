"""Who may pass: the master key of mlxq itself, and the apps' keys from their file."""

from __future__ import annotations

import hmac
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from state import keys
from state.keys import Key

MASTER_NAME = "mlxq"


class KeyRing:
    """The keys that are valid now. A changed file is read again at the next request."""

    def __init__(self, path: Path, master: str, trial: str = "", proving: Callable[[], bool] = lambda: False) -> None:
        """`trial`: a key that opens this process alone, and only while it is `proving`."""
        self._path = path
        self._master = Key(MASTER_NAME, keys.digest(master), 0.0)
        self._trial, self._proving = keys.digest(trial), proving
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._times: dict[str, deque[float]] = {}

    def find(self, secret: str | None) -> Key | None:
        """Return what a key may do, or None for one that is wrong or revoked."""
        if not secret:
            return None
        digest = keys.digest(secret)
        if hmac.compare_digest(digest, self._master.digest):
            return self._master
        if self._proving() and hmac.compare_digest(digest, self._trial):
            return self._master
        self._refresh()
        return self._keys.get(digest)

    def named(self, name: str) -> Key | None:
        """Return the key of that name, or None for one that does not exist or was revoked."""
        if name == MASTER_NAME:
            return self._master
        self._refresh()
        return next((key for key in self._keys.values() if key.name == name), None)

    def rate_limited(self, key: Key) -> float | None:
        """Count one request of the key; return the seconds to wait when that was more than its limit a minute."""
        if key.rpm is None:
            return None
        now, times = time.monotonic(), self._times.setdefault(key.digest, deque())
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= key.rpm:
            return times[0] + 60 - now
        times.append(now)
        return None

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            version = None
        if version == self._seen:
            return
        usable, problem = keys.usable(self._path)
        if problem is None or self._seen is None:  # what was read before this file was damaged counts on
            self._keys = usable
        self._seen = version


def secret_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key in a request's headers: OpenAI's style, or Anthropic's."""
    values = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    scheme, _, token = values.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return values.get(b"x-api-key") or None
