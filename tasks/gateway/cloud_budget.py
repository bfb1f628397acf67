"""The way out of the machine: capped, and every step of it logged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from state import cloud_spend
from tasks.gateway.request_context import Call

CLOUD = "cloud"
UNPRICED_USD = 0.01
"""What a request counts for when the host did not tell its cost, as when its stream broke."""

log = logging.getLogger("mlxq.cloud")


class Purse:
    """What may be spent in a day (UTC). Its file outlives the gateway."""

    def __init__(self, path: Path, cap_usd: float) -> None:
        self._path = path
        self._cap = cap_usd
        self._today = cloud_spend.read(path)

    def empty(self) -> str | None:
        """Tell why nothing more may be spent today; None while there is something left."""
        self._turn()
        if self._today.usd < self._cap:
            return None
        return f"the cloud's cap of ${self._cap:.2f} a day is reached"

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give the request that also asks OpenRouter for its price."""
        more: dict[str, Any] = {"stream_options": {"include_usage": True}} if body.get("stream") else {}
        return {**body, **more, "usage": {"include": True}}

    def leave(self, call: Call) -> None:
        """Log that a request leaves the machine: whose, never what it says."""
        log.warning("A request leaves the machine: key=%s asked=%r bytes=%d", call.key, call.asked, len(call.body))

    def pay(self, usage: dict[str, Any]) -> None:
        """Count one request's price."""
        self._turn()
        usd = float(usage.get("cost", UNPRICED_USD))
        self._today.usd = round(self._today.usd + usd, 6)
        self._today.requests += 1
        log.warning("It cost $%.6f; today $%.6f of $%.2f.", usd, self._today.usd, self._cap)
        cloud_spend.write(self._path, self._today)

    def _turn(self) -> None:
        """Read the file again: while one gateway takes another's place, both spend."""
        written = cloud_spend.read(self._path)
        if written.day != self._today.day or written.usd > self._today.usd:
            self._today = written
