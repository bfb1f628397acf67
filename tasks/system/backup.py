"""What backups leave out: files that can be downloaded or made again."""

from __future__ import annotations

import sys
from pathlib import Path


def exclude(path: Path) -> None:
    """Have Time Machine leave out a file or a folder, on macOS; a disk that cannot note it keeps it in."""
    if sys.platform == "darwin":
        from tasks.system.macos import disk

        disk.exclude_from_backup(path)
