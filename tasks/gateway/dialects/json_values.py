"""Parsed JSON whose shape is unknown: what is not of the wanted kind counts as empty."""

from __future__ import annotations

from typing import Any, cast


def obj(value: Any) -> dict[str, Any]:
    """Return an object; an empty one for all else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects in a list; none for all else."""
    if not isinstance(value, list):
        return []
    return [cast("dict[str, Any]", item) for item in cast("list[Any]", value) if isinstance(item, dict)]


def first(value: Any) -> dict[str, Any]:
    """Return the first object in a list; an empty one where there is none."""
    items = objects(value)
    return items[0] if items else {}
