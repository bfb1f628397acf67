"""Model files that mlxq writes for models that no other file describes: neither worker nor restart asks the Hub.

Such a file is like one that a user writes (docs/add-a-model.md). Its first line says that mlxq wrote it; without that
line the file is the user's, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog.schema import faults
from state.errors import UsageProblem
from state.files import replace_private
from state.paths import Home

MARK = "# mlxq wrote this from the model's own files. Delete this line, and what you change here stays."


def keep(home: Home, row: Mapping[str, Any]) -> None:
    """Make sure that the model of `row`, the fields of a model file, is one of this home's.

    Raises UsageProblem for a row that is no valid model file.
    """
    if fault := next(faults(dict(row)), None):
        path, problem, allowed = fault
        raise UsageProblem(f"A model cannot be kept: {'.'.join(path)}: {problem}; allowed: {allowed}.")
    home.catalog.mkdir(mode=0o700, exist_ok=True)
    path = home.catalog / f"{row['id']}.yaml"
    text = _text(row)
    if not _is_users(path) and (not path.exists() or path.read_text(encoding="utf-8") != text):
        replace_private(path, text)


def _text(row: Mapping[str, Any]) -> str:
    """Return the file."""
    import yaml

    return f"{MARK}\n{yaml.safe_dump(dict(row), sort_keys=False, allow_unicode=True, width=120)}"


def _is_users(path: Path) -> bool:
    """Return whether a file is there that mlxq did not write, or that a user has taken over."""
    return path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK)
