"""The description of a client: where it should connect, and how its file is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from state.classes import dataclass
from state.stack import Tier

MAIN, SMALL = "standard", "fast"
"""The tier for the main work, and the one for titles, summaries and other small tasks."""
MASKED = "sk-mlxq-…"
"""Shown in place of the key in a preview."""


@dataclass(frozen=True)
class Target:
    """The endpoint, key and tiers that a client should use."""

    root: str
    """The gateway's address without a path, such as http://127.0.0.1:4000."""
    key: str
    tiers: Sequence[Tier]
    embedding: str = ""
    """The name of the model for embeddings; empty where there is none."""

    @property
    def url(self) -> str:
        """The base of OpenAI's API."""
        return f"{self.root}/v1"

    @property
    def main(self) -> Tier:
        """The tier for the main work; the first if there is no `standard`."""
        return self._named(MAIN)

    @property
    def small(self) -> Tier:
        """The tier for small tasks; the main one if there is no `fast`."""
        return next((tier for tier in self.tiers if tier.name == SMALL), self.main)

    def _named(self, name: str) -> Tier:
        return next((tier for tier in self.tiers if tier.name == name), self.tiers[0])


@dataclass(frozen=True)
class Client:
    """A program: where its file is, what is written to it, and how it is started."""

    name: str
    title: str
    path: Callable[[Mapping[str, str], Path], Path]
    """(environment, the user's home folder) -> the file it reads."""
    write: Callable[[str, Target], str]
    """(the current text, "" if there is no file; target) -> the new text. Raises ValueError with the line if
    the text cannot be parsed."""
    start: str
    """The next step, as a sentence or a command."""
    argv: tuple[str, ...] = ()
    """What starts it; empty for a program that is not started from a shell."""
    needs: int = 0
    """Tokens of the window below which it does not work: its instructions and tools, and room for an answer."""
    holds_key: bool = True
    """Whether the key is written to the file; otherwise it is shown once, to be entered in the program."""
