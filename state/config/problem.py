"""Something wrong with a file that users edit: a message, never the end of a program."""

from __future__ import annotations

from state.classes import dataclass
from state.errors import UsageProblem


@dataclass(frozen=True)
class ConfigProblem:
    """What is wrong, and what mlxq does instead."""

    message: str
    done: str
    hint: str
    """The command that cures it."""
    names: tuple[str, ...] = ()
    """The settings that do not have the value of the file because of it."""
    warning: bool = False
    """Whether it changes nothing."""

    def document(self) -> dict[str, str]:
        """Return the problem as commands print it as JSON."""
        return {"message": self.message, "done": self.done, "hint": self.hint}

    def error(self) -> UsageProblem:
        """Return the problem as an error."""
        return UsageProblem(self.message, done=self.done, hint=self.hint)
