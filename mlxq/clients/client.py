"""What every client has in common: what it is told, and how it tells what it wants written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from state.stack import Tier

MAIN, SMALL = "standard", "fast"
"""The tier for the work, and the one for titles, summaries and other small jobs."""
MASKED = "sk-mlxq-…"
"""Stands for the key while a change is only shown."""


@dataclass(frozen=True)
class Target:
    """Where a client shall go, and with what."""

    root: str
    """The gateway's address without a path, such as http://127.0.0.1:4000."""
    key: str
    tiers: Sequence[Tier]

    @property
    def url(self) -> str:
        """The base of OpenAI's API."""
        return f"{self.root}/v1"

    @property
    def main(self) -> Tier:
        """The tier for the work; the first when there is no `standard`."""
        return self._named(MAIN)

    @property
    def small(self) -> Tier:
        """The tier for small jobs; the main one when there is no `fast`."""
        return next((tier for tier in self.tiers if tier.name == SMALL), self.main)

    def _named(self, name: str) -> Tier:
        return next((tier for tier in self.tiers if tier.name == name), self.tiers[0])


@dataclass(frozen=True)
class Client:
    """One program: where its file is, what goes into it, and how it is started then."""

    name: str
    title: str
    path: Callable[[Mapping[str, str], Path], Path]
    """(environment, the person's home folder) -> the file it reads."""
    write: Callable[[str, Target], str]
    """(the file as it is, "" when there is none; target) -> the file as it shall be. Raises ValueError with the
    line when it cannot be read."""
    start: str
    """What to do next, in a sentence or a command."""
    holds_key: bool = True
    """Whether the key is in the file; else the person is shown it once, to put it where the program keeps keys."""
