"""The sets of weights on this disk as models: their names, and the engine that would serve each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from catalog import retrieval as retrieval_catalog
from catalog.load import of_source
from catalog.model import Model
from state import on_demand, settings, stack, weights
from state.db import Database
from state.errors import Damaged, DiskUnavailable, NotFound
from state.on_demand import DiskModel
from state.paths import Home
from state.stack import Engine
from tasks import recommend, stack_jobs
from tasks.engines import serving
from tasks.on_demand import requests
from tasks.plan import gateway, placement, retrieval
from tasks.weights import description, manifest, model_dir
from tasks.weights.formats import headers

LISTING_S = 60.0
"""How long a disk may take: the headers of every file are read."""
_UNFIT = re.compile(r"[^a-z0-9.]+")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
"""A name that headers, settings and shells take as it is."""


@dataclass(frozen=True)
class Scanned:
    """One usable folder of weights."""

    folder: Path
    source: str
    """Empty for weights that the user copied or linked there."""
    bits: str
    """How its values are packed, as its name says it where no catalog does."""
    changed_at: float = 0.0
    """When the folder was last changed, in unix seconds: of two revisions the one that was downloaded later counts."""


def fingerprint(db: Database, home: Home) -> object:
    """Return what changes when the models on this disk, or the room for them, may have changed. Raises NotSetUp."""
    folder = settings.load(home).models(home)
    try:
        changed = model_dir.read(folder, lambda: folder.stat().st_mtime_ns)
    except DiskUnavailable:
        changed = 0
    rows = tuple((row.folder, row.pulled_at) for row in weights.listing(db))
    pinned = tuple((engine.name, engine.memory_bytes) for engine in stack.engines(db))
    return str(folder), changed, rows, pinned, stack_jobs.budget(db, home), settings.version(home)


def refresh(db: Database, home: Home) -> None:
    """Read the models folder, and store what is there. Raises NotSetUp, DiskUnavailable."""
    room = _room(db, home)
    models = recommend.all_models(home)
    folder = settings.load(home).models(home)
    folders = model_dir.read(folder, lambda: _scan(folder), LISTING_S)
    newest_first = sorted(folders, key=lambda scanned: -scanned.changed_at)
    entries = [entry for scanned in newest_first if (entry := _entry(db, home, scanned, models, room))]
    on_demand.put_models(db, _named_apart(entries, settings.load(home)["default-quant"]))


def _room(db: Database, home: Home) -> int:
    """Return the bytes that the engines which always stay leave of the budget. Raises NotSetUp."""
    stack.require(db)
    return stack_jobs.budget(db, home) - sum(engine.memory_bytes for engine in requests.staying(db))


def _scan(folder: Path) -> list[Scanned]:
    folders: list[Scanned] = []
    for entry in headers.scan(folder):
        if entry.state == "valid" and entry.weights is not None:
            record = None if entry.folder.is_symlink() else manifest.read(entry.folder)
            bits = entry.weights.quantization or f"{entry.weights.bits:.0f}-bit"
            changed_at = headers.changed_at(entry.folder)
            folders.append(Scanned(entry.folder, record.asked if record else "", bits, changed_at))
    return folders


def _entry(db: Database, home: Home, scanned: Scanned, models: Mapping[str, Model], room: int) -> DiskModel | None:
    """Return a folder's model; None for one that answers nothing."""
    return _retrieval(scanned) or _chat(db, home, scanned, models, room)


def _retrieval(scanned: Scanned) -> DiskModel | None:
    if match := of_source(scanned.source, retrieval_catalog.entries()):
        model, quant = match
        engine = retrieval.engine(_service(model.id, quant), model, quant, str(scanned.folder))
        return DiskModel(model.id, (model.repo, *_repos(scanned)), engine)
    return None


def _chat(db: Database, home: Home, scanned: Scanned, models: Mapping[str, Model], room: int) -> DiskModel | None:
    match = of_source(scanned.source, models)
    try:
        source = scanned.source or f"file:{scanned.folder}"
        model, quant = match or description.model_of_folder(scanned.folder, source)
    except (NotFound, Damaged, OSError):
        return None
    keeps = serving.reads_once(db, home)(model)
    engine = placement.on_demand(
        _service(model.id, quant), model, quant, room, weights=str(scanned.folder), keeps=keeps
    )
    own = f"{model.id}:{quant}" if match else scanned.folder.name.partition("@")[0]
    return DiskModel(model.id, (own, *_repos(scanned)), engine)


def _repos(scanned: Scanned) -> Iterable[str]:
    """Return the repo of weights that came from the Hub."""
    repo = scanned.source.removeprefix("hub:").partition("#")[0]
    return (repo,) if scanned.source.startswith("hub:") else ()


def _service(model: str, quant: str, number: int = 1) -> str:
    """Return the name of a model's engine. It has a dot, which no tier's name has, so the two are never confused."""
    which = f"-{number}" if number > 1 else ""
    return f"{_UNFIT.sub('-', model.lower()).strip('-.')[:60]}{which}.{_UNFIT.sub('-', quant.lower())}"


def _named_apart(entries: Sequence[DiskModel], preferred: str) -> list[DiskModel]:
    """Return the models with each name once: of several quants the `preferred` one has the model's own name.

    Of several weights of one quant and name the one whose folder is called just so keeps it, else the first; the others
    are numbered.
    """
    ordered = sorted(
        entries,
        key=lambda entry: (entry.engine.quant != preferred, entry.engine.name, entry.model not in entry.aliases),
    )
    taken: set[str] = set()
    named: list[DiskModel] = []
    for entry in ordered:
        numbered = (_numbered(entry, number, taken) for number in count(1))
        named.append(next(filter(None, numbered)))
        taken.update(map(on_demand.folded, on_demand.names(named[-1])))
    return named


def _numbered(entry: DiskModel, number: int, taken: Collection[str]) -> DiskModel | None:
    """Return a model with a number, from 2 on, in its id and its engine's name; None where those are taken."""
    engine, name = entry.engine, entry.model
    if number > 1:
        engine, name = replace(engine, name=_service(entry.model, engine.quant, number)), f"{entry.model}-{number}"
    different = {on_demand.folded(alias): alias for alias in reversed((name, *entry.aliases))}
    names = [alias for folded, alias in reversed(different.items()) if folded not in taken]
    if not names or not _PLAIN.fullmatch(names[0]) or engine.name in taken:
        return None
    return DiskModel(names[0], tuple(names[1:]), engine)


def route(db: Database, home: Home, engine: Engine) -> dict[str, object]:
    """Return what the gateway must know of an engine on demand, as gateway.yaml says it of one of the stack."""
    if engine.purpose != stack.CHAT:
        return retrieval.row(engine, [])
    programs, templates = serving.programs(db, home, [engine]), serving.templates(home, [engine])
    return gateway.engine_section(engine, programs[engine.name], templates.get(engine.name))
