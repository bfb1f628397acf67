"""What can be wrong with a model file or a name."""

from __future__ import annotations


class BadModelFile(ValueError):
    """A model file says something it may not. Attributes: file, line (from 1), field, allowed."""

    def __init__(self, file: str, line: int, field: str, problem: str, allowed: str) -> None:
        """Take the place and the two halves of the sentence."""
        self.file, self.line, self.field, self.allowed = file, line, field, allowed
        location = f"{file}:{line}: " + (f"{field}: " if field else "")
        super().__init__(f"{location}{problem}; allowed: {allowed}." if allowed else f"{location}{problem}.")


class UnknownModel(LookupError):
    """No model has this name. Attributes: name, nearest (names, best first)."""

    def __init__(self, name: str, nearest: tuple[str, ...]) -> None:
        """Take the name asked for and the nearest ones."""
        self.name, self.nearest = name, nearest
        near = f" The nearest are: {', '.join(nearest)}." if nearest else ""
        super().__init__(f"No model is called {name}.{near}")
