"""The models: read from YAML, laid over with the user's own, and found by any of their names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from catalog.model import Attention, Model, Quant
from catalog.problems import BadModelFile, UnknownModel

SHIPPED = Path(__file__).parent / "models"
COMPILED = Path(__file__).parent / "models.json"
"""The shipped files in one, made by `python -m catalog.compile`: reading YAML would double the time of a command."""


@dataclass(frozen=True)
class Match:
    """A model found by a name, the quant when the name was a conversion's repo, and a note for the user."""

    model: Model
    quant: str | None = None
    note: str | None = None


def entries(overlay: Path | None = None) -> dict[str, Model]:
    """Return every model by id; files in `overlay` (MLXQ_HOME/catalog) add to the shipped ones or replace them.

    Raises problems.BadModelFile, with file, line, field and the allowed values.
    """
    if overlay is None or not overlay.is_dir():
        return dict(_shipped())
    return dict(_shipped()) | _folder(overlay)


@cache
def _shipped() -> dict[str, Model]:
    rows: list[dict[str, Any]] = json.loads(COMPILED.read_text(encoding="utf-8"))
    return {row["id"]: model(row) for row in rows}


def _folder(folder: Path) -> dict[str, Model]:
    return {row["id"]: model(row) for row in rows(folder)}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the model files of a folder, in the order of their names. Raises problems.BadModelFile."""
    return [_row(path) for path in sorted(folder.glob("*.y*ml"))]


def _row(path: Path) -> dict[str, Any]:
    from catalog.schema import parse

    try:
        row = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise BadModelFile(str(path), 1, "", f"cannot be read: {problem}", "") from problem
    if row["id"] != path.stem:
        raise BadModelFile(str(path), 1, "id", f"{row['id']!r} is not the file's name", path.stem)
    return row


def model(row: Mapping[str, Any]) -> Model:
    """Make a model of a checked row."""
    plain = {key: value for key, value in row.items() if key not in {"attention", "quants"}}
    plain["name"] = row.get("name", row["id"])
    plain["active_params_b"] = row.get("active_params_b", row["total_params_b"])
    plain["text_params_b"] = row.get("text_params_b", row["total_params_b"])
    for key in ("tags", "aliases"):
        plain[key] = tuple(row.get(key, ()))
    quants = {name: _quant(name, details) for name, details in row["quants"].items()}
    return Model(attention=Attention(**row["attention"]), quants=quants, **plain)


def _quant(name: str, row: Mapping[str, Any]) -> Quant:
    plain: dict[str, Any] = dict(row) | {"seen_in": tuple(row.get("seen_in", ()))}
    return Quant(name=name, **plain)


def resolve(name: str, models: Mapping[str, Model]) -> Match:
    """Find a model by id, alias, repo, or a name mlx-stack invented (then with a note).

    Raises UnknownModel, which holds the nearest names.
    """
    wanted = name.strip().lower().removeprefix("hub:").removeprefix("https://huggingface.co/")
    names = dict(_names(models))
    if wanted in names:
        return names[wanted]
    import difflib

    raise UnknownModel(name, tuple(difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)))


def find(name: str, models: Mapping[str, Model]) -> Model:
    """Return the model of a name; see `resolve`, which also gives the quant and the note."""
    return resolve(name, models).model


def _names(models: Mapping[str, Model]) -> Iterator[tuple[str, Match]]:
    """Return every name by which a model can be asked for; later ones win, so ids come last."""
    for entry in models.values():
        for wrong, reason in entry.stands_for.items():
            yield wrong.lower(), Match(entry, note=f"{wrong} is not a real model: {reason}. Using {entry.id}.")
        for alias in (*entry.aliases, entry.name, entry.repo):
            yield alias.lower(), Match(entry)
        for quant in entry.quants.values():
            yield quant.source.removeprefix("hub:").lower(), Match(entry, quant.name)
    for entry in models.values():
        yield entry.id.lower(), Match(entry)
