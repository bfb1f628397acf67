"""The ballast: disk kept in reserve, so that a full one can be recorded and left again.

state/db.py gives it up when SQLite finds the disk full; the worker lays it again when there is room. No backup has
it: a snapshot of Time Machine would hold its blocks after it was given up.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from state.paths import Home
from tasks.system import backup

BALLAST_BYTES = 16 * 1024 * 1024
ROOM_BYTES = 4 * BALLAST_BYTES
"""Below this the ballast would make the disk full itself."""


def lay_ballast(home: Home) -> None:
    """Write the ballast when it is not there and there is room for it. Random bytes: zeros may take no room."""
    part = home.ballast.with_suffix(".part")
    try:
        if home.ballast.exists() or shutil.disk_usage(home.root).free < ROOM_BYTES:
            return
        part.write_bytes(os.urandom(BALLAST_BYTES))
        backup.exclude(part)
        part.rename(home.ballast)
    except OSError:
        with suppress(OSError):  # a home that cannot be reached at all
            part.unlink()
