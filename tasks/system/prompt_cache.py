"""What the engines keep of old prompts on disk: written at each stop, read at the next start, never pruned by them.

It holds what users wrote, as tokens. Between a start and a stop no engine looks at it, so it may go at any time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from state import files
from state.paths import Home

NO_STORE = "no-store"
"""The file that an engine looks for as it ends (tasks/engines/base.py)."""


def folder(home: Home, tier: str) -> Path:
    """Return the folder of one tier's old prompts (tasks/engines: its adapters put them there)."""
    return home.root / "cache" / tier


def folders(home: Home) -> list[Path]:
    """Return one folder a tier, also of tiers that are gone."""
    root = home.root / "cache"
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def keep_out(home: Home, engine: str) -> None:
    """Have an engine write none of its prompts to disk at its next end: it is about to read one that must not be."""
    root = folder(home, engine)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / NO_STORE).touch(mode=0o600)


def size(root: Path) -> int:
    """Return the bytes in a folder and below."""
    return files.size(root)


def written_at(root: Path) -> float:
    """Return when something in a folder was written last, in Unix seconds; 0 where nothing is in it."""
    return max((status.st_mtime for status in files.below(root)), default=0.0)


def cap(root: Path, limit: int) -> int:
    """Delete the caches of single models, the oldest first, until the folder holds at most `limit` bytes.

    What holds no bytes stays: an engine that starts has just made the folder of its temporary files there.
    Returns the bytes that were freed.
    """
    if not root.is_dir():
        return 0
    before = used = size(root)
    models = sorted((path for path in root.iterdir() if path.is_dir()), key=written_at)
    for model in models:
        if used <= limit:
            break
        if size(model):
            shutil.rmtree(model, ignore_errors=True)
            used = size(root)
    return before - used
