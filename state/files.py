"""Files that are replaced in one step."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: temp, fsync, rename. Raises OSError; the file is then as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
