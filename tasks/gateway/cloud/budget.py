"""The way out of the machine: capped, and every step of it logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from state.metrics import cloud_spend
from tasks.gateway.request_context import Call

UNPRICED_USD = 0.01
"""What a request counts for when the host did not state its cost, as when its stream broke."""

log = logging.getLogger("mlxq.cloud")


class CloudBudget:
    """What may be spent in a day (UTC). Its file outlives the gateway."""

    def __init__(self, path: Path, cap_usd: float) -> None:
        self._path = path
        self._cap = cap_usd
        self._today = cloud_spend.read(path)

    def exhausted(self) -> str | None:
        """Return why nothing more may be spent today; None while there is something left."""
        self._refresh()
        if self._today.usd < self._cap:
            return None
        return f"the cloud's cap of ${self._cap:.2f} a day is reached"

    def log_egress(self, call: Call) -> None:
        """Log that a request leaves the machine: whose, never what it says."""
        log.warning("A request leaves the machine: key=%s asked=%r bytes=%d", call.key, call.asked, len(call.body))

    def charge(self, usage: Mapping[str, Any]) -> None:
        """Count one request's price."""
        self._refresh()
        usd = float(usage.get("cost") or UNPRICED_USD)
        self._today.usd = round(self._today.usd + usd, 6)
        self._today.requests += 1
        log.warning("It cost $%.6f; today $%.6f of $%.2f.", usd, self._today.usd, self._cap)
        cloud_spend.write(self._path, self._today)

    def _refresh(self) -> None:
        """Read the file again: while one gateway takes another's place, both spend."""
        written = cloud_spend.read(self._path)
        if written.day != self._today.day or written.usd > self._today.usd:
            self._today = written
