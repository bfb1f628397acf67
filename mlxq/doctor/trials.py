"""`mlxq doctor --self-test`: show how each assumption about this machine went, and write a recording of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlxq import render
from state import settings
from state.errors import MlxqError
from state.files import replace_private
from state.paths import Home
from tasks.system import hardware, self_test
from tasks.system.self_test import TriedAssumption

MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("-", None)}


def run(home: Home, record: Path | None, *, as_json: bool) -> None:
    """Try the assumptions and show each as it ends. Raises Exit with 1 when one does not hold."""
    tried: list[TriedAssumption] = []
    for result in self_test.run(_folder(home), self_test.assumptions()):
        tried.append(result)
        if not as_json:
            _show(result)
    if as_json:
        render.data({"ok": all(result.trial.holds is not False for result in tried), "trials": [*map(_row, tried)]})
    failed = [result for result in tried if result.trial.holds is False]
    render.say(f"\n{len(tried) - len(failed)} of {len(tried)} hold, in {sum(r.seconds for r in tried):.1f} s.")
    if record:
        _record(record, tried)
    if failed:
        raise click.exceptions.Exit(1)


def _folder(home: Home) -> Path:
    """Return the folder of the models, or the nearest one that is there: their disk is what is tried."""
    models = settings.load(home).models(home)
    return next(folder for folder in (models, *models.parents) if folder.is_dir())


def _show(result: TriedAssumption) -> None:
    mark, color = MARKS[result.trial.holds]
    text = f"{result.assumption.name}: {result.trial.detail}"
    if result.trial.holds is False:
        text += f"  → {result.assumption.matters}"
    painted = render.paint(mark, color, sys.stdout) if color else mark
    render.prose(text, f"  {painted} ")


def _row(result: TriedAssumption) -> dict[str, Any]:
    return {
        "name": result.assumption.name,
        "holds": result.trial.holds,
        "detail": result.trial.detail,
        "matters": result.assumption.matters,
        "seconds": round(result.seconds, 3),
    }


def _record(path: Path, tried: list[TriedAssumption]) -> None:
    """Write the recording. Raises MlxqError."""
    outcomes = {True: "holds", False: "does not hold", None: "is not there"}
    lines = [f"{result.assumption.name} {outcomes[result.trial.holds]}" for result in tried]
    text = f"{hardware.record()}\n$ mlxq doctor --self-test\n" + "\n".join(lines) + "\n"
    try:
        replace_private(path.absolute(), text)
    except OSError as problem:
        raise MlxqError(f"Cannot write {path}: {problem.strerror}.", done="It is as it was.") from problem
    render.say(f"Wrote {path}; it describes this machine, without names or paths.")
