"""`mlxq doctor`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlxq import confirm, jobs_client, options, render
from mlxq.doctor import bundle, checks, fixes, trials
from mlxq.doctor.rules import Finding, Grade
from state.errors import MlxqError, UsageProblem
from state.paths import Home, get_home

MARKS = {Grade.OK: ("✓", "green"), Grade.WARN: ("⚠", "yellow"), Grade.FAIL: ("✗", "red")}


@click.command()
@click.option("--fix", is_flag=True, help="Repair what can be repaired without losing data.")
@options.yes
@click.option("--bundle", "archive", type=click.Path(path_type=Path), metavar="FILE", help="Write an archive to share.")
@click.option("--self-test", is_flag=True, help="Try what mlxq assumes about this machine, in at most 30 seconds.")
@click.option("--record", type=click.Path(path_type=Path), metavar="FILE", help="With --self-test: write a recording.")
@options.as_json
def command(*, fix: bool, yes: bool, archive: Path | None, self_test: bool, record: Path | None, as_json: bool) -> None:
    """Diagnose problems.

    Takes at most five seconds. Exits 1 when there is an error (✗), 0 when there are none, or only warnings (⚠).
    --fix asks before it moves a damaged state.db aside. The archive of --bundle is a .tar.gz of logs, jobs and
    settings; it holds neither keys nor prompts. --self-test leaves nothing behind. The recording of --record describes
    the machine without names or paths, so that it can be attached to a report.
    """
    home = get_home()
    if record and not self_test:
        raise UsageProblem("--record goes with --self-test.", hint="mlxq doctor --self-test --record FILE")
    if self_test:
        trials.run(home, record, as_json=as_json)
        return
    findings = checks.run_checks(home)
    fixed = _fix(home, findings, yes=yes) if fix else []
    if fixed:
        findings = checks.run_checks(home)
    if as_json:
        rows = [_row(finding) for finding in findings]
        render.data({"ok": _errors(findings) == 0, "checks": rows, "fixed": fixed})
    else:
        _show(findings)
    if archive:
        bundle.write(home, findings, archive)
        render.say(f"Wrote {archive}; read it before you share it.")
    _end(home, findings)


def _fix(home: Home, findings: Sequence[Finding], *, yes: bool) -> list[str]:
    """Apply each fix once, none before all are confirmed; return the sentences on what was done."""
    fixed: list[str] = []
    names = dict.fromkeys(finding.fix for finding in findings if finding.fix)
    if names.keys() & fixes.ASKED:
        _confirm(home, yes=yes)
    for name in names:
        fixed.append(fixes.FIXES[name](home))
        render.say(fixed[-1])
    return fixed


def _confirm(home: Home, *, yes: bool) -> None:
    """Ask before the job database is moved aside. Raises UsageProblem where stdin is no terminal."""
    render.say(f"{home.database} is damaged. It is kept beside a new one; jobs and stack are then set up again.")
    confirm.change("Move it aside", effect="This moves state.db aside", hint="mlxq doctor --fix --yes", yes=yes)


def _show(findings: Sequence[Finding]) -> None:
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            click.echo(f"◆ {area}")
        mark, color = MARKS[finding.grade]
        text = f"{finding.text}  → {finding.hint}" if finding.hint else finding.text
        render.prose(text, f"  {render.paint(mark, color, sys.stdout)} ")


def _end(home: Home, findings: Sequence[Finding]) -> None:
    """Print the totals and the next command. Raises Exit with 1 when there is an error."""
    count = Counter(finding.grade for finding in findings)
    counted = (
        f"{count[Grade.OK]} passed",
        _counted(count[Grade.WARN], "warning"),
        _counted(count[Grade.FAIL], "error"),
    )
    render.say(f"\n{', '.join(counted)}.")
    if hint := _next(home, findings):
        render.next_step(hint)
    if count[Grade.FAIL]:
        raise click.exceptions.Exit(1)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _next(home: Home, findings: Sequence[Finding]) -> str | None:
    """Return the command that helps first: a fix, then what errors name, then setup, then what warnings name."""
    if any(finding.fix for finding in findings):
        return "mlxq doctor --fix"
    hints = {
        grade: [finding.hint for finding in findings if finding.grade is grade and finding.hint] for grade in Grade
    }
    setup = [] if _has_stack(home) else ["mlxq setup"]
    return next(iter([*hints[Grade.FAIL], *setup, *hints[Grade.WARN]]), None)


def _has_stack(home: Home) -> bool:
    """Return whether setup was run; an unreadable job database is a finding of its own."""
    try:
        return jobs_client.has_stack(home)
    except MlxqError:
        return True


def _errors(findings: Sequence[Finding]) -> int:
    return sum(finding.grade is Grade.FAIL for finding in findings)


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "area": finding.area,
        "grade": finding.grade,
        "text": finding.text,
        "hint": finding.hint,
        "fix": finding.fix,
    }
