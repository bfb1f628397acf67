"""Names as a sentence lists them. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence has them: `a`, `a and b`, `a, b and c`; empty for none."""
    *before, last = [*names] or [""]
    return " and ".join(filter(None, (", ".join(before), last)))
