"""How many examples of a property a run tries: a quarter, and all of them where EXAMPLES is 100, as in .ci/run."""

from __future__ import annotations

import os

PERCENT = int(os.environ.get("EXAMPLES", "25"))


def share(full: int) -> int:
    """Return how many of `full` examples this run tries."""
    return max(1, full * PERCENT // 100)
