"""`mlxq doctor`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlxq import options, render
from mlxq.doctor import bundle, checks, fixes
from mlxq.doctor.rules import Finding, Grade
from state.errors import UsageProblem
from state.paths import Home, get_home

MARKS = {Grade.OK: ("✓", "green"), Grade.WARN: ("⚠", "yellow"), Grade.FAIL: ("✗", "red")}


@click.command()
@click.option("--fix", is_flag=True, help="Mend what can be mended without losing anything.")
@click.option("--yes", "-y", is_flag=True, help="With --fix: do not ask before a damaged state.db is moved aside.")
@click.option("--bundle", "archive", type=click.Path(path_type=Path), metavar="FILE", help="Write a .tar.gz to send.")
@options.as_json
def command(*, fix: bool, yes: bool, archive: Path | None, as_json: bool) -> None:
    """Look for what keeps mlxq from working; takes at most five seconds.

    Exits 1 when something is broken (✗), 0 when all is well or merely odd (⚠). The archive of --bundle holds logs,
    jobs and settings, and neither keys nor prompts.
    """
    place = get_home()
    found = checks.run_checks(place)
    done = _fix(place, found, yes=yes) if fix else []
    if done:
        found = checks.run_checks(place)
    if as_json:
        render.data({"ok": _failed(found) == 0, "checks": [_row(one) for one in found], "mended": done})
    else:
        _show(found)
    if archive:
        bundle.write(place, found, archive)
        render.say(f"Wrote {archive}; read it before you send it.")
    _end(found)


def _fix(place: Home, found: Sequence[Finding], *, yes: bool) -> list[str]:
    """Mend each thing once; give the sentences on what was done."""
    done: list[str] = []
    for name in dict.fromkeys(one.fix for one in found if one.fix):
        if name in fixes.ASKED and not yes:
            _ask(place)
        done.append(fixes.FIXES[name](place))
        render.say(done[-1])
    return done


def _ask(place: Home) -> None:
    """Ask before the job database is moved aside. Raises UsageProblem where nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageProblem(
            "A damaged state.db is moved aside only when somebody agrees, and here is nobody to ask.",
            hint="mlxq doctor --fix --yes",
        )
    render.say(f"{place.database} is damaged. It is kept beside a new one; jobs and stack are then set up again.")
    click.confirm("Move it aside", abort=True, err=True)


def _show(found: Sequence[Finding]) -> None:
    area = ""
    for one in found:
        if one.area != area:
            area = one.area
            click.echo(f"◆ {area}")
        mark, colour = MARKS[one.grade]
        text = f"{one.text}  → {one.hint}" if one.hint else one.text
        render.prose(text, f"  {render.paint(mark, colour, sys.stdout)} ")


def _end(found: Sequence[Finding]) -> None:
    """Say the sum, name the next command, and exit 1 when something is broken."""
    count = Counter(one.grade for one in found)
    render.say(f"\n{count[Grade.FAIL]} broken, {count[Grade.WARN]} odd, {count[Grade.OK]} well.")
    hints = [one.hint for grade in (Grade.FAIL, Grade.WARN) for one in found if one.grade is grade and one.hint]
    if hints:
        render.next_step("mlxq doctor --fix" if any(one.fix for one in found) else hints[0])
    if count[Grade.FAIL]:
        raise click.exceptions.Exit(1)


def _failed(found: Sequence[Finding]) -> int:
    return sum(one.grade is Grade.FAIL for one in found)


def _row(one: Finding) -> dict[str, Any]:
    return {"area": one.area, "grade": one.grade, "text": one.text, "hint": one.hint, "fixable": one.fix is not None}
