"""What the nodes of a fleet say of their machines, read by an allow-list. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast, get_args

from catalog.fleet import FleetMachine
from catalog.intent import TIERS
from catalog.machine import Backend, Machine, from_row
from catalog.speed import Measured
from state.classes import dataclass
from tasks.plan.fleet import MODEL, mapping, printable

MOST_MEASURED, MOST_WEIGHTS, MOST_NAMES = 200, 500, 1000
LARGEST = 2**50
"""Bytes, tokens/s and GB/s that no machine has."""


@dataclass(frozen=True)
class NodeMachine:
    """A node's machine, and what is on its disk."""

    plan: FleetMachine
    weights: frozenset[str]
    """Sources of the weights that are there."""


def read(name: str, document: Any, *, stays: bool = False) -> NodeMachine:
    """Return what a node says of its machine (`tasks.fleet.machine.describe`). Raises ValueError for what is none.

    `stays`: whether it is to stay as it is.
    """
    rows = mapping(document)
    reads_once = set(_texts(rows.get("reads_once"), MOST_NAMES))
    now = mapping(rows.get("stack", {}))
    return NodeMachine(
        FleetMachine(
            name,
            _machine(mapping(rows.get("machine", {}))),
            int(_number(rows.get("budget_bytes"))),
            {tier: _choice(words) for tier, words in now.items() if tier in TIERS},
            [_measured(mapping(row)) for row in _list(rows.get("measured"))[:MOST_MEASURED]],
            lambda model: model.id in reads_once,
            stays=stays or bool(now.keys() - set(TIERS)),
        ),
        frozenset(_texts(rows.get("weights"), MOST_WEIGHTS)),
    )


def _machine(row: Mapping[str, Any]) -> Machine:
    """Return a machine whose values are of their types and could be true. Raises ValueError."""
    values: dict[str, Any] = {}
    for entry in fields(Machine):
        if entry.name not in row:
            continue
        value = row[entry.name]
        values[entry.name] = printable(str(value)) if entry.type in {"str", "Backend"} else _of_type(value, entry.type)
    if values.get("backend") not in get_args(Backend):
        raise ValueError("no backend")
    try:
        return from_row(values)
    except TypeError as problem:
        raise ValueError("no machine") from problem


def _of_type(value: Any, kind: Any) -> Any:
    if kind == "bool":
        return bool(value)
    return int(_number(value)) if kind == "int" else float(_number(value))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
        raise ValueError(f"no number: {value!r:.40}")
    return value


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _texts(value: Any, most: int) -> list[str]:
    return [text for text in _list(value)[:most] if isinstance(text, str) and MODEL.fullmatch(text)]


def _choice(words: Any) -> tuple[str, str]:
    """Return the model and the quant of a tier. Raises ValueError."""
    model, _, quant = str(words).partition(" ")
    if not (MODEL.fullmatch(model) and MODEL.fullmatch(quant)):
        raise ValueError(f"no model: {words!r:.40}")
    return model, quant


def _measured(row: Mapping[str, Any]) -> Measured:
    context, decode, prompt = (_number(row.get(name)) for name in ("context", "decode", "prompt"))
    model, quant = _choice(f"{row.get('model')} {row.get('quant')}")
    return Measured(model, quant, int(context), decode, prompt)
