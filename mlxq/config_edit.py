"""`mlxq config edit`: the settings in an editor, on a copy that takes the file's place when it is right."""

from __future__ import annotations

from pathlib import Path

import click

from state import settings
from state.classes import dataclass
from state.config import text
from state.config.problem import ConfigProblem
from state.config.text import Unreadable
from state.errors import Busy, MlxqError
from state.paths import Home


@dataclass(frozen=True)
class Draft:
    """The copy that is edited."""

    path: Path
    version: object
    """Of config.yaml as it was then."""


def begin(home: Home) -> Draft:
    """Write a copy of the settings, or continue with one that was left behind. Raises MlxqError.

    The copy of a file that cannot be read has the last valid settings.
    """
    draft = Draft(home.make().root / "config.yaml.edit", settings.version(home))
    settings.write_private(draft.path, _text(draft.path) or _text(home.config) or settings.last_valid_text(home))
    return draft


def _text(path: Path) -> str | None:
    try:
        return text.read(path)
    except Unreadable:
        return None


def run_editor(draft: Draft) -> None:
    """Run the user's editor and wait for it. Raises MlxqError."""
    try:
        click.edit(filename=str(draft.path), require_save=False)
    except (click.ClickException, ValueError) as problem:
        raise MlxqError(
            f"The editor failed: {problem}",
            done=f"Nothing was changed; what you wrote is in {draft.path}.",
            hint="EDITOR=nano mlxq config edit",
        ) from problem


def check(home: Home, draft: Draft) -> list[ConfigProblem]:
    """Return what is wrong with the draft; warnings are not."""
    return [problem for problem in settings.problems_of(home, draft.path) if not problem.warning]


def finish(home: Home, draft: Draft) -> bool:
    """Put the draft in place of config.yaml, and keep the old one as config.yaml.old; return whether it differs.

    Raises Busy when another program has changed config.yaml meanwhile.
    """
    if settings.version(home) == draft.version and _text(draft.path) == _text(home.config):
        draft.path.unlink(missing_ok=True)
        return False
    if not settings.replace_file(home, draft.path, draft.version):
        raise Busy(
            f"{home.config} was changed while you edited it.",
            done=f"It was left as it is; what you wrote is in {draft.path}.",
            hint="mlxq config edit",
        )
    return True
