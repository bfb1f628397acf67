"""Imports every task module, which fills the lanes. Only the worker does this."""

from __future__ import annotations

from tasks.queue import LANES


def known_kinds() -> list[str]:
    """Give the kinds of job that this process can run."""
    return sorted(LANES["ops"].storage.kinds | LANES["heavy"].storage.kinds)
