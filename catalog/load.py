"""The models: read from YAML, laid over with the user's own, and found by any of their names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from catalog.model import Attention, Model, Quant
from catalog.problems import BadModelFile, UnknownModel
from state.classes import dataclass

SHIPPED = Path(__file__).parent / "models"
COMPILED = Path(__file__).parent / "models.json"
"""The shipped files in one, made by `python -m catalog.compile`: reading YAML would double the time of a command."""


LARGEST = 256 * 1024
"""Bytes of a model file."""


class Quantized(Protocol):
    """What has weights in some quants: a model for chats, or for retrieval."""

    @property
    def quants(self) -> Mapping[str, Quant]:
        """By name."""
        ...


Entry = TypeVar("Entry", bound=Quantized)


@dataclass(frozen=True)
class Match:
    """A model found by a name, the quant when the name was a conversion's repo, and a note for the user."""

    model: Model
    quant: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Overlay:
    """The user's own models, those of files that are valid or were so last, and what is wrong with the others."""

    models: dict[str, Model]
    texts: dict[str, str]
    """The valid files, by name."""
    problems: list[BadModelFile]


def entries(overlay: Path | None = None, last_valid: Path | None = None) -> dict[str, Model]:
    """Return every model by id; files in `overlay` (MLXQ_HOME/catalog) add to the shipped ones or replace them.

    A file that is wrong is left out, or its version in the folder `last_valid` is used.
    """
    return dict(_shipped()) | (read_overlay(overlay, last_valid).models if overlay else {})


def read_overlay(folder: Path, last_valid: Path | None = None) -> Overlay:
    """Read the user's own model files, each on its own; a folder that cannot be read holds none."""
    overlay = Overlay({}, {}, [])
    for path in _files(folder, overlay.problems):
        try:
            text, row = _row(path)
            overlay.texts[path.name] = text
        except BadModelFile as problem:
            overlay.problems.append(problem)
            row = _last_valid_row(path, last_valid)
        if row is not None:
            overlay.models[row["id"]] = model(row)
    return overlay


def _files(folder: Path, problems: list[BadModelFile]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if fnmatch(path.name, "[!.]*.y*ml"))
    except FileNotFoundError:
        return []
    except OSError as problem:
        problems.append(BadModelFile(str(folder), 1, "", f"cannot be read: {problem.strerror}", ""))
        return []


def _last_valid_row(path: Path, last_valid: Path | None) -> dict[str, Any] | None:
    try:
        return _row(last_valid / path.name)[1] if last_valid else None
    except BadModelFile:
        return None


@cache
def _shipped() -> dict[str, Model]:
    rows: list[dict[str, Any]] = json.loads(COMPILED.read_text(encoding="utf-8"))
    return {row["id"]: model(row) for row in rows}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the model files of a folder, in the order of their names. Raises problems.BadModelFile."""
    return [_row(path)[1] for path in sorted(folder.glob("*.y*ml"))]


def _row(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a model file and what it says. Raises problems.BadModelFile."""
    from catalog.schema import parse

    try:
        if not path.is_file():  # a pipe would never end
            raise BadModelFile(str(path), 1, "", "is not a regular file", "")
        if path.stat().st_size > LARGEST:
            raise BadModelFile(str(path), 1, "", f"is larger than {LARGEST // 1024} KB", "")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadModelFile(str(path), 1, "", f"cannot be read: {problem}", "") from problem
    row = parse(text, str(path))
    if row["id"] != path.stem:
        raise BadModelFile(str(path), 1, "id", f"{row['id']!r} is not the file's name", path.stem)
    return text, row


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


def of_source(source: str, models: Mapping[str, Entry]) -> tuple[Entry, str] | None:
    """Return the model whose weights come from a source, and their quant; None where there is none."""
    pairs = ((model, quant) for model in models.values() for quant in model.quants.values())
    return next(((model, quant.name) for model, quant in pairs if quant.source == source), None)


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
