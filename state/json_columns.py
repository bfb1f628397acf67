"""Columns of JSON, read as what they should hold: a row that another program wrote must stop nothing."""

from __future__ import annotations

import json
from typing import Any, cast


def mapping(text: str | None) -> dict[str, Any]:
    """Return a column's JSON object; an empty one for NULL, and for all else."""
    value = _value(text)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def array(text: str | None) -> list[Any]:
    """Return a column's JSON array; an empty one for NULL, and for all else."""
    value = _value(text)
    return cast("list[Any]", value) if isinstance(value, list) else []


def strings(text: str | None) -> list[str]:
    """Return the strings in a column's JSON array."""
    return [value for value in array(text) if isinstance(value, str)]


def numbers(text: str | None) -> list[float]:
    """Return the numbers in a column's JSON array."""
    return [value for value in array(text) if isinstance(value, int | float) and not isinstance(value, bool)]


def _value(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
