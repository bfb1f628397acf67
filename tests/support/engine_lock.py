"""Take out of a lock what no machine of mlxq installs: `engine_lock.py LOCK`. The justfile runs it."""

from __future__ import annotations

import sys
from pathlib import Path

NEVER = ("== 'never'", "== 'win32'")
EVERY = (
    " ; (platform_machine == 'arm64' and sys_platform == 'darwin')"
    " or (platform_machine == 'x86_64' and sys_platform == 'linux')"
)
"""What `uv export` writes at each package that all environments of uv.lock have."""


def needed(text: str) -> str:
    """Return the lock without the packages, and the hashes below them, that are marked for no machine.

    A mark with an alternative, as in "not PyPy or never", stays: some machine may need the package.
    """
    kept: list[str] = []
    keeps = True
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            keeps = " or " in line or not any(mark in line for mark in NEVER)
        if keeps:
            kept.append(line.replace(EVERY, ""))
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    lock = Path(sys.argv[1])
    lock.write_text(needed(lock.read_text(encoding="utf-8")), encoding="utf-8")
