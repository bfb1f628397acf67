"""Where the last conversation and the history of prompts are kept: two private files, or none."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxq.conversation.dialog import Dialog
from state import files
from state.errors import MlxqError, UsageProblem
from state.paths import Home

SETTING = "keep-chats"


def _last(home: Home) -> Path:
    return home.chats / "last.json"


def history(home: Home) -> Path:
    """Return the file of prompts, mode 0600; it is made where it is absent. Raises MlxqError."""
    path = home.chats / "history"
    try:
        home.chats.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as problem:
        raise MlxqError(
            f"Cannot write to {path}: {problem.strerror}.", hint=f"mlxq config set {SETTING} no"
        ) from problem
    return path


def keep(home: Home, dialog: Dialog) -> None:
    """Replace what is kept, in one step. Raises MlxqError."""
    path = _last(home)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.replace_private(path, json.dumps(asdict(dialog), ensure_ascii=False))
    except OSError as problem:
        raise MlxqError(
            f"Cannot write to {path}: {problem.strerror}.", hint=f"mlxq config set {SETTING} no"
        ) from problem


def last(home: Home) -> Dialog:
    """Return the conversation that was kept last. Raises UsageProblem where there is none that can be read."""
    try:
        document: dict[str, Any] = json.loads(_last(home).read_bytes())
        messages = [{"role": str(row["role"]), "content": str(row["content"])} for row in document["messages"]]
        return Dialog(str(document["tier"]), str(document["system"]), messages)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UsageProblem("There is no conversation to continue.", hint="mlxq chat") from problem


def save(path: Path, dialog: Dialog) -> None:
    """Write the conversation to a new file. Raises UsageProblem when it exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(dialog.markdown())
    except OSError as problem:
        raise UsageProblem(f"Cannot write {path}: {problem.strerror}.", hint="/save FILE") from problem
