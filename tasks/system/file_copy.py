"""Copy a file without its bytes where the disk can: APFS shares the blocks until one copy changes (clonefile(2))."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path


def copy(source: Path, target: Path) -> None:
    """Copy a file's content to a path where nothing is; links are followed. Raises OSError."""
    if not (sys.platform == "darwin" and _cloned(source.resolve(), target)):
        shutil.copyfile(source, target)


def _cloned(source: Path, target: Path) -> bool:
    """Return whether the disk made a clone; it refuses across volumes and where it cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    return library.clonefile(os.fsencode(source), os.fsencode(target), 0) == 0
