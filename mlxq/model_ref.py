"""Resolve MODEL arguments: a catalog id, an alias, a repo or a folder becomes a source. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from catalog.load import Match, resolve
from catalog.model import Model
from catalog.problems import UnknownModel
from state.classes import dataclass
from state.errors import UsageProblem
from tasks import recommend
from tasks.weights import source as sources

FOLDERS = ("/", "./", "../", "~", "file:")
"""Prefixes of folder names."""


@dataclass(frozen=True)
class ModelRef:
    """A source of weights, and what the catalog knows of it."""

    source: str
    """As the job `pull` takes it."""
    model: Model | None = None
    """Its entry in the catalog, if it has one."""
    quant: str | None = None
    notes: tuple[str, ...] = ()
    """Notes for the user."""

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.model.id if self.model else self.source.removeprefix("hub:")


def find(name: str, quant: str | None, models: Mapping[str, Model], preferred: str) -> ModelRef:
    """Resolve a MODEL and its --quant; `preferred` is the default quant.

    Raises NotFound with the nearest names, UsageProblem for a quant that does not exist.
    """
    if not name.strip():
        raise UsageProblem("There is no model.", hint="mlxq models --catalog")
    if name.startswith(FOLDERS):
        return _elsewhere(f"file:{sources.folder(name.removeprefix('file:'))}", quant)
    if retrieval := recommend.retrieval_named(f"{name}:{quant}" if quant else name):
        model, own = retrieval
        return ModelRef(model.quants[own].source, None, own)
    match = _match(name, models)
    return _in_catalog(name, match, quant, preferred) if match else _elsewhere(name, quant)


def _match(name: str, models: Mapping[str, Model]) -> Match | None:
    """Return the match in the catalog; None for a repo or package that is not in it. Raises NotFound."""
    try:
        return resolve(name, models)
    except UnknownModel:
        return None if "/" in name or name.startswith("pypi:") else recommend.find(name, models)


def _in_catalog(name: str, match: Match, quant: str | None, preferred: str) -> ModelRef:
    """Return the source of a model in the catalog. Raises UsageProblem for a quant that does not exist."""
    model, notes = match.model, (match.note,) if match.note else ()
    if match.quant and quant not in {None, match.quant}:
        raise UsageProblem(f"{name} holds {match.quant}, not {quant}.", hint=f"mlxq pull {model.id} --quant {quant}")
    if quant and "/" in name and not match.quant and _must_be_made(model, quant):
        return ModelRef(f"hub:{model.repo}#{quant}", model, quant, (*notes, _converts(model.repo, quant)))
    chosen = match.quant or recommend.quant_of(model, quant, preferred)
    return ModelRef(model.quants[chosen].source, model, chosen, notes)


def _must_be_made(model: Model, quant: str) -> bool:
    return quant in recommend.CONVERTED and quant not in model.quants


def _elsewhere(text: str, quant: str | None) -> ModelRef:
    """Resolve a source that is not in the catalog; another quant is converted locally. Raises UsageProblem."""
    source = sources.parse(text)
    if quant is None:
        return ModelRef(text if source.kind != "hub" or text.startswith("hub:") else f"hub:{text}")
    if source.kind == "pypi" or quant not in recommend.CONVERTED:
        raise UsageProblem(f"{source} cannot be converted to {quant}.", hint="int4, int8 and bf16 can be made.")
    return ModelRef(f"{source}#{quant}", None, quant, (_converts(source.name, quant),))


def _converts(name: str, quant: str) -> str:
    return f"{name} will be converted to {quant} here, by mlx-lm."
