"""Confirmation, on a terminal, of what deletes or changes something."""

from __future__ import annotations

import sys

import click

from state.errors import UsageProblem


def change(question: str, *, effect: str, hint: str, yes: bool = False, default: bool = False) -> None:
    """Ask `question` unless `yes`; a no ends the command.

    `effect`: the start of a sentence on what would happen, such as "This deletes files"; `hint`: how to confirm it
    without a terminal. Raises UsageProblem where stdin is none, Abort for a no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"{effect}; stdin is not a terminal to confirm it on.", done="Nothing was changed.", hint=hint
        )
    click.confirm(question, default=default, abort=True, err=True)


def deletion(question: str = "Delete", *, yes: bool) -> None:
    """Ask before files are deleted, as `change` does."""
    change(question, effect="This deletes files", hint="Add --yes.", yes=yes)


def machines(question: str, hint: str, *, yes: bool) -> None:
    """Ask before other machines are changed, as `change` does."""
    change(question, effect="This changes machines", hint=hint, yes=yes)
