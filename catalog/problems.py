"""What can be wrong with a model file, a name, or the size of a machine."""

from __future__ import annotations

from catalog import units


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


class TooSmall(ValueError):
    """Nothing fits. Attributes: needs_bytes of the smallest stack, budget_bytes."""

    def __init__(self, needs_bytes: int, budget_bytes: int) -> None:
        """Take both sizes."""
        self.needs_bytes, self.budget_bytes = needs_bytes, budget_bytes
        needs, budget = units.apart(needs_bytes, budget_bytes)
        super().__init__(
            f"The smallest stack needs {needs}; the budget is {budget}: {units.memory(self.short_bytes)} too little."
        )

    @property
    def short_bytes(self) -> int:
        """What is missing."""
        return self.needs_bytes - self.budget_bytes
