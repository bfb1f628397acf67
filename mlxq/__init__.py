"""The command line and the web page. Start at `cli.py` and `jobs_client.py`."""

from __future__ import annotations

import os
from importlib.machinery import PathFinder

__version__ = "0.1.0"
"""As in pyproject.toml, which a test holds; to read it from the installation takes longer than to start Python."""
SIBLINGS = ("tasks", "catalog", "state")
"""The other packages of this distribution. Their names are everyday words, which a user's own files may bear."""


def shadowed_packages() -> list[str]:
    """Return the files that Python would import in place of mlxq's own packages; empty when all is well."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 (pathlib costs 8 ms here)
    specs = ((name, PathFinder.find_spec(name)) for name in SIBLINGS)
    return [
        str(spec.origin if spec else name)
        for name, spec in specs
        if spec is None or not _same(str(spec.origin), f"{ours}/{name}/__init__.py")
    ]


def _same(path: str, other: str) -> bool:
    """Return whether two paths are one file, however they are spelled."""
    return path == other or (os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other))  # noqa: PTH110, PTH121 (as above)
