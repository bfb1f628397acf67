"""Models that no file of the catalog describes, as commands meet them: a repo, a folder, or weights that are here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from catalog.description.describe import Description
from catalog.load import model as model_of
from catalog.load import of_source
from catalog.model import Model
from mlxq import local_models, model_ref, render
from mlxq.model_ref import ModelRef
from state import settings
from state.classes import dataclass
from state.errors import NotFound, UsageProblem
from state.paths import Home

DIGITS = 6
"""Hex digits behind the id of a model whose id another model has."""


@dataclass(frozen=True)
class NamedModel:
    """A model that may become a tier."""

    model: Model
    quant: str
    row: Mapping[str, Any] | None = None
    """Its model file, where the catalog has none yet."""


def find(
    name: str, quant: str | None, models: Mapping[str, Model], home: Home, context: int | None = None
) -> NamedModel:
    """Return the model that a MODEL argument names: of the catalog, else described from its files.

    `context` is the window in tokens that the user named, which is taken where the files tell none. Raises NotFound,
    UsageProblem, Gated, Offline, Damaged.
    """
    reference = _reference(name, quant, models, home)
    if reference.model and reference.quant and reference.quant in reference.model.quants:
        return NamedModel(reference.model, reference.quant)
    if entry := of_source(reference.source, models):
        return NamedModel(*entry)
    description = describe(home, reference.source)
    row = _apart(description.row, models)
    if context and not description.window_told:
        row["context"] = context
    return NamedModel(model_of(row), description.quant, row)


def describe(home: Home, source: str) -> Description:
    """Return what a source needs, by the weights that are here, the folder or the Hub.

    Raises NotFound, UsageProblem, Gated, Offline, Damaged.
    """
    from tasks.system.child import Later
    from tasks.weights import client

    models = settings.load(home).models(home)
    if source.startswith("hub:") and not client.here(source, models):
        render.say(f"Reading what {source.removeprefix('hub:')} says of itself on the Hub.")
    try:
        return client.describe(source, models)
    except Later as later:
        raise UsageProblem(f"{later.reason}.", done="Nothing was changed.", hint="Try again in a minute.") from later


def _reference(name: str, quant: str | None, models: Mapping[str, Model], home: Home) -> ModelRef:
    """Return the source of a MODEL argument; an unknown name may be that of weights that are here."""
    try:
        return model_ref.find(name, quant, models, settings.load(home)["default-quant"])
    except NotFound:
        for row in local_models.listing(home, None, models):
            if name in {row.model, row.folder.name} and row.state in {"valid", "loadable"}:
                return ModelRef(row.source or f"file:{row.folder}")
        raise


def _apart(row: Mapping[str, Any], models: Mapping[str, Model]) -> dict[str, Any]:
    """Return a model file whose id no other model has: another folder of one name gets digits of its source."""
    if row["id"] not in models:
        return dict(row)
    (quant,) = row["quants"].values()
    digest = hashlib.sha256(quant["source"].encode()).hexdigest()[:DIGITS]
    return {**row, "id": f"{row['id']}-{digest}"}
