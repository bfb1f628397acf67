"""How much a disk has left for what a user asked for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def available(folder: Path) -> int:
    """Return the bytes that may be written to the disk of a folder. Raises OSError.

    On macOS with what a purge would free: snapshots and caches that it deletes when an app needs the room
    (kCFURLVolumeAvailableCapacityForImportantUsageKey).
    """
    if sys.platform == "darwin":
        from tasks.system.macos import disk

        return max(disk.plain_free(folder), disk.free_for_important(folder) or 0)
    return shutil.disk_usage(folder).free
