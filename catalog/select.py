"""Which models a user asks to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from catalog.fit import memory, smallest
from catalog.model import Model

SHOWN_CONTEXT = 8192
"""Tokens at which a list says whether a model fits."""


def select(
    models: Mapping[str, Model],
    *,
    family: str | None = None,
    tag: str | None = None,
    tool_calling: bool = False,
    budget_bytes: int | None = None,
) -> list[Model]:
    """Return the models that agree with all that is asked, by family and size.

    Family and tag are compared without regard to case, spaces and dashes ("gemma3" is "Gemma 3"); the budget is
    held against the smallest quant with one request of 8K tokens.
    """
    matches = [
        model
        for model in models.values()
        if _among(family, [model.family])
        and _among(tag, model.tags)
        and (model.tool_calling or not tool_calling)
        and (budget_bytes is None or memory(model, smallest(model).name, SHOWN_CONTEXT).total <= budget_bytes)
    ]
    return sorted(matches, key=lambda model: (model.family, model.total_params_b))


def families(models: Mapping[str, Model]) -> list[str]:
    """Return every family, sorted."""
    return sorted({model.family for model in models.values()})


def tags(models: Mapping[str, Model]) -> list[str]:
    """Return every tag, sorted."""
    return sorted({tag for model in models.values() for tag in model.tags})


def _among(wanted: str | None, words: Sequence[str]) -> bool:
    return wanted is None or _plain(wanted) in map(_plain, words)


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter == ".")
