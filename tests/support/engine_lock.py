"""Take out of a lock what no machine of mlxq installs: `engine_lock.py LOCK`. Run by `just lock-engine`."""

from __future__ import annotations

import sys
from pathlib import Path

NEVER = ("'never'", "'win32'")


def needed(text: str) -> str:
    """Return the lock without the packages, and the hashes below them, that are marked for no machine."""
    kept: list[str] = []
    keeps = True
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            keeps = not any(mark in line for mark in NEVER)
        if keeps:
            kept.append(line)
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    lock = Path(sys.argv[1])
    lock.write_text(needed(lock.read_text(encoding="utf-8")), encoding="utf-8")
