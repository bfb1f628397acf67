"""The installed models. The folders and their headers are authoritative, not the database."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog.load import resolve
from catalog.model import Model
from catalog.problems import UnknownModel
from mlxq import jobs_client
from state import on_demand, settings, stack, weights
from state.classes import dataclass
from state.db import Database
from state.errors import Damaged, NotFound, NotSetUp
from state.paths import Home
from state.stack import Tier
from state.weights import Weights
from tasks.weights import description, manifest, model_dir, staging
from tasks.weights.formats import headers
from tasks.weights.formats.headers import ScannedFolder

ANSWER_S = 4.0
"""How long a command waits for a disk that says nothing."""
LISTING_S = 60.0
"""And for one that is slow: the list reads a few kilobytes of each file."""


@dataclass(frozen=True)
class Installed:
    """One folder of weights."""

    folder: Path
    model: str
    """Catalog id, else the repo or the folder's name."""
    quant: str
    source: str
    """Empty for weights that the user copied or linked there."""
    revision: str
    state: str
    """loadable (an engine served them), valid, partial, damaged, unsupported or unreadable."""
    size: int
    """Bytes on the disk."""
    used_by: tuple[str, ...]
    """The tiers that use them."""
    problem: str | None
    pulled: float
    """When they were installed, in unix seconds."""
    verified: float | None
    """When the hashes were last checked, in unix seconds; None without known hashes."""
    recorded: bool
    """Whether this mlxq downloaded them; else they were put there, also if another mlxq did that."""
    served_as: tuple[str, ...] = ()
    """The names by which the gateway knows them."""

    def row(self) -> dict[str, Any]:
        """Return the row as printed with --json."""
        return {
            "folder": str(self.folder),
            "model": self.model,
            "quant": self.quant,
            "source": self.source or None,
            "revision": self.revision or None,
            "state": self.state,
            "size_bytes": self.size,
            "used_by": list(self.used_by),
            "problem": self.problem,
            "verified_at": self.verified,
        }


def listing(home: Home, db: Database | None, models: Mapping[str, Model]) -> list[Installed]:
    """Return all models in the models folder; without a database none is in use. Raises DiskUnavailable."""
    folder = settings.load(home).models(home)
    if db and (problem := model_dir.problem_of(model_dir.recorded(db, folder), ANSWER_S)):
        raise problem
    tiers = stack.tiers(db) if db else []
    rows: dict[str, Weights] = {row.folder: row for row in weights.listing(db)} if db else {}
    names = {entry.engine.weights: on_demand.names(entry) for entry in on_demand.models(db)} if db else {}

    def read() -> list[Installed]:
        rows_here = [
            _installed(scan, _users(scan, tiers), rows.get(str(scan.folder)), models) for scan in headers.scan(folder)
        ]
        return [replace(row, served_as=names.get(str(row.folder), ())) for row in rows_here]

    return model_dir.read(folder, read, LISTING_S)


def _users(scan: ScannedFolder, tiers: Sequence[Tier]) -> tuple[str, ...]:
    """Return the tiers that use a folder."""
    return tuple(tier.name for tier in tiers if tier.engine.weights == str(scan.folder))


def require_writable(home: Home) -> None:
    """Make sure that models can be downloaded and deleted: their disk is there. Raises DiskUnavailable."""
    with suppress(NotSetUp), jobs_client.reading(home) as db:
        model_dir.require(db, settings.load(home).models(home), ANSWER_S)


def _installed(
    scan: ScannedFolder, users: tuple[str, ...], row: Weights | None, models: Mapping[str, Model]
) -> Installed:
    foreign = scan.state == "unreadable" or scan.folder.is_symlink()
    record = None if foreign else manifest.read(scan.folder)
    source = record.asked if record else ""
    model, quant = _named(source, scan, models)
    return Installed(
        folder=scan.folder,
        model=model,
        quant=quant,
        source=source,
        revision=record.revision if record else "",
        state="loadable" if row and row.loaded_at and scan.state == "valid" else scan.state,
        size=scan.size,
        used_by=users,
        problem=scan.problem,
        pulled=headers.changed_at(scan.folder),
        verified=row.verified_at if row else None,
        recorded=staging.is_ours(scan.folder) if scan.state == "partial" else row is not None,
    )


def _named(source: str, scan: ScannedFolder, models: Mapping[str, Model]) -> tuple[str, str]:
    """Return the model's name and quant, from the catalog if it knows the source."""
    by_source = {quant.source: (model.id, quant.name) for model in models.values() for quant in model.quants.values()}
    if source in by_source:
        return by_source[source]
    repo, _, converted = source.partition("#")
    name = repo.removeprefix("hub:") if repo.startswith("hub:") else scan.folder.name.partition("@")[0]
    return name, converted or _measured_quant(scan)


def _measured_quant(scan: ScannedFolder) -> str:
    if scan.weights is None:
        return ""
    return scan.weights.quantization or f"{scan.weights.bits:.0f}-bit"


def described(row: Installed, models: Mapping[str, Model]) -> tuple[Model, str] | None:
    """Return the model of installed weights and their quant, read from their files where the catalog has none.

    None for weights that are not whole, or of which nothing can be told.
    """
    if row.model in models and row.quant in models[row.model].quants:
        return models[row.model], row.quant
    if row.state not in {"valid", "loadable"}:
        return None
    try:
        contents = description.of_folder(row.folder, row.source or f"file:{row.folder}")
    except (NotFound, Damaged, OSError):
        return None
    return contents.model, contents.quant


def choose(
    name: str, installed: Sequence[Installed], models: Mapping[str, Model], quant: str | None = None
) -> list[Installed]:
    """Return the installed models that a name means: folder, catalog id, alias, repo or source. Raises NotFound.

    Where none has it just so: those that the gateway knows by it, or that have it but for case.
    """
    model = _catalog_id(name, models)
    wanted = model or name.removeprefix("hub:").rstrip("/")
    rows = [row for row in installed if quant in {None, row.quant}]
    for names, text in (
        (_names, wanted),
        (_folded_served_as, on_demand.folded(name)),
        (_folded_names, on_demand.folded(wanted)),
    ):
        if matches := [row for row in rows if text in names(row)]:
            return matches
    text = f"No weights of {name}{f' in {quant}' if quant else ''} are here."
    raise NotFound(text + _nearest(wanted, installed), hint=f"mlxq pull {model}" if model else "mlxq models")


def _nearest(wanted: str, installed: Sequence[Installed]) -> str:
    names = sorted({name for row in installed for name in _names(row)})
    near = difflib.get_close_matches(wanted, names, n=1)
    return f" The nearest are {near[0]}." if near else ""


def _catalog_id(name: str, models: Mapping[str, Model]) -> str | None:
    try:
        return resolve(name, models).model.id
    except UnknownModel:
        return None


def _folded_served_as(row: Installed) -> set[str]:
    return set(map(on_demand.folded, row.served_as))


def _folded_names(row: Installed) -> set[str]:
    return set(map(on_demand.folded, _names(row)))


def _names(row: Installed) -> set[str]:
    repo = row.source.removeprefix("hub:").partition("#")[0]
    return {row.model, row.folder.name, str(row.folder), row.source, repo} - {""}
