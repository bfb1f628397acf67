"""What is wrong with what users set: settings, the apps' keys, model files, targets. None of it stops anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from state import settings
from state.config.problem import ConfigProblem
from state.db import Database
from state.errors import MlxqError
from state.paths import Home


def listing(home: Home) -> list[ConfigProblem]:
    """Return every problem, each with what mlxq does instead and the command that cures it."""
    return [*settings.load(home).problems, *_keys(home), *_models(home)]


def of_targets(db: Database) -> list[ConfigProblem]:
    """Return the notification targets to which delivery keeps failing: twice in a row, or for good."""
    if not db.home.notify_targets.exists():
        return []
    from state.notify import notices, targets

    try:
        names = list(targets.read(db.home.notify_targets))
    except MlxqError as problem:
        return [ConfigProblem(problem.message, "No notification is delivered.", problem.hint or "mlxq notify list")]
    rows = {name: notices.latest_delivery(db, name) for name in names}
    return [
        ConfigProblem(
            f"Notifications do not reach {name}: {row['error']}",
            "They are kept for the next delivery." if row["state"] == "failed" else "They are tried again for a day.",
            f"mlxq notify test {name}",
            warning=True,
        )
        for name, row in rows.items()
        if row and row["error"] and (row["state"] == "failed" or row["failures"] > 1)
    ]


def _keys(home: Home) -> list[ConfigProblem]:
    if not home.app_keys.exists():
        return []
    from state import keys

    _, problem = keys.usable(home.app_keys)
    return [ConfigProblem(problem.message, problem.done or "", problem.hint or "")] if problem else []


def _models(home: Home) -> list[ConfigProblem]:
    if not home.catalog.exists():
        return []
    from tasks import recommend  # it brings the catalog along

    done = "Its last valid version counts, or the shipped model."
    return [ConfigProblem(problem, done, "mlxq catalog check") for problem in recommend.file_problems(home)]


class ConfigWatch:
    """Reads the files only when one of them has changed; a worker and the page look every two seconds."""

    def __init__(self) -> None:
        self._state: Any = None
        self._problems: list[ConfigProblem] = []

    def listing(self, home: Home) -> list[ConfigProblem]:
        """Return every problem."""
        self.fresh(home)
        return self._problems

    def fresh(self, home: Home) -> Sequence[ConfigProblem]:
        """Return the problems that were not there when this was called before."""
        state = [settings.version(home), *map(_version, [home.app_keys, home.catalog, *_files(home.catalog)])]
        if state == self._state:
            return []
        before, self._state, self._problems = self._problems, state, listing(home)
        return [problem for problem in self._problems if problem not in before]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _version(path: Path) -> tuple[int, int, int] | int | None:
    try:
        stat = path.stat()
    except OSError as problem:
        return problem.errno
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
