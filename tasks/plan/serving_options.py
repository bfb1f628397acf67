"""How a user wants a model served where that differs from what its files say. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from catalog.model import Model
from catalog.schema import REASONING_PARSERS, TOOL_PARSERS
from state.classes import dataclass
from state.errors import UsageProblem

NONE = "none"
"""What a parser is called that is not to be used."""


@dataclass(frozen=True)
class ServingOptions:
    """What a user said of one model; None leaves it to the model's files."""

    tool_parser: str | None = None
    """A name of the engine's, or `none`."""
    reasoning_parser: str | None = None
    context: int | None = None
    """Tokens of the window."""

    def __bool__(self) -> bool:
        """Return whether anything was said."""
        return any(value is not None for value in asdict(self).values())

    def row(self) -> dict[str, Any]:
        """Return what was said, as it is kept in the arguments of a job."""
        return {name: value for name, value in asdict(self).items() if value is not None}


AS_TOLD = ServingOptions()
"""All of it is left to the model's files."""


def from_row(row: Mapping[str, Any]) -> ServingOptions:
    """Read back what `row` gave."""
    return ServingOptions(**row)


def applied(model: Model, options: ServingOptions) -> Model:
    """Return the model as it is to be served. Raises UsageProblem for an unknown parser or too long a window."""
    if options.context is not None and options.context > model.context:
        raise UsageProblem(
            f"{model.id} was made for {model.context:,} tokens; a window of {options.context:,} is longer.",
            done="Nothing was changed.",
            hint=f"--context {model.context}",
        )
    return replace(
        model,
        tool_parser=_parser("tool", options.tool_parser, model.tool_parser, TOOL_PARSERS),
        reasoning_parser=_parser("reasoning", options.reasoning_parser, model.reasoning_parser, REASONING_PARSERS),
    )


def _parser(kind: str, wanted: str | None, own: str | None, names: frozenset[str]) -> str | None:
    """Return the parser to use. Raises UsageProblem for a name that no engine knows."""
    if wanted is None:
        return own
    if wanted != NONE and wanted not in names:
        raise UsageProblem(
            f"There is no {kind} parser {wanted!r}; there is: {', '.join(sorted(names))}.",
            hint=f"--{kind}-parser {NONE}   (uses none)",
        )
    return None if wanted == NONE else wanted
