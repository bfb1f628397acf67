"""How many files a process may open. macOS gives a program that is started in Terminal 256."""

from __future__ import annotations

import resource

WANTED = 8192
LEAST = 4096
"""mlx-lm asks for this hard limit as it is imported, and ends where it does not get it (mlx_lm/utils.py)."""


def raise_limit(wanted: int = WANTED) -> tuple[int, int]:
    """Raise this process's soft limit, which its children inherit, as far as it may; return the soft and hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return soft, hard


def too_low(hard: int) -> bool:
    """Return whether no engine can run under this hard limit."""
    return hard != resource.RLIM_INFINITY and hard < LEAST
