"""`mlxq config edit`: the settings in an editor, on a copy that takes the file's place when it is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from state import settings
from state.config import text
from state.config.text import Unreadable
from state.errors import Busy, MlxqError
from state.paths import Home
from state.settings import ConfigProblem

HEAD = """\
# The settings of mlxq, as `name: value`; each has its default unless it is set here.
# `mlxq config list` shows all of them.
"""


@dataclass(frozen=True)
class Draft:
    """The copy that is edited."""

    path: Path
    before: bytes
    """What it held at first."""
    original: bytes | None
    """What config.yaml held then; None for what cannot be read."""


def begin(home: Home) -> Draft:
    """Write a copy of the settings to edit, or go on with one that was left. Raises MlxqError.

    What cannot be read as text begins with the last valid settings.
    """
    path = home.make().root / "config.yaml.edit"
    original = _content(home.config)
    left = _content(path)
    before = left if left is not None else _readable(original) or settings.last_valid_text(home) or HEAD.encode()
    settings.write_private(path, before.decode())
    return Draft(path, before, original)


def _readable(content: bytes | None) -> bytes | None:
    """Return content that an editor can show as UTF-8."""
    try:
        return text.decode(content).encode() if content else None
    except Unreadable:
        return None


def _content(path: Path) -> bytes | None:
    """Return what a regular file holds; None for one that is not there or is something else."""
    try:
        found = text.read(path)
    except Unreadable:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= text.LARGEST else None
    return None if found is None else found.encode()


def run_editor(path: Path) -> None:
    """Run the user's editor and wait for it. Raises MlxqError."""
    try:
        click.edit(filename=str(path), require_save=False)
    except (click.ClickException, ValueError) as problem:
        raise MlxqError(
            f"The editor failed: {problem}",
            done=f"Nothing was changed; what you wrote is in {path}.",
            hint="EDITOR=nano mlxq config edit",
        ) from problem


def check(home: Home, draft: Draft) -> list[ConfigProblem]:
    """Return what is wrong with the draft; warnings are not."""
    return [problem for problem in settings.problems_of(home, draft.path) if not problem.warning]


def finish(home: Home, draft: Draft) -> bool:
    """Put the draft in place of config.yaml, and keep the old one as config.yaml.old; return whether it differs.

    Raises Busy when another program has changed config.yaml meanwhile.
    """
    if _content(home.config) != draft.original:
        raise Busy(
            f"{home.config} was changed while you edited it.",
            done=f"It was left as it is; what you wrote is in {draft.path}.",
            hint="mlxq config edit",
        )
    changed = _content(draft.path) != draft.original
    if changed:
        settings.replace_file(home, draft.path)
    draft.path.unlink(missing_ok=True)
    return changed
