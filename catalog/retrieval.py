"""Models that make vectors of texts, and that rank documents, from retrieval.json. Pure.

`bytes` are those of the weights on disk, `bytes_from` says where they were not read from the repo. Only what
mlx-embeddings 0.1.0 loads and computes rightly is there: nomic-embed-text-v1.5 (nomic_bert) and jina-embeddings-v3
(XLM-R with adapters, a program of its own) are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from catalog.model import Quant
from catalog.problems import UnknownModel
from state.classes import dataclass

SHIPPED = Path(__file__).with_name("retrieval.json")
PROCESS_BYTES = 400 * 2**20
"""Of a process without its weights: 330 MB were measured with all-MiniLM-L6-v2, of which 91 MB are weights."""
PASS_VALUES = 4_096 * 24
"""Values of 4 bytes, times the width of a model, that one forward pass of 4,096 tokens holds at its widest: the inner
layer and the scores of attention."""


@dataclass(frozen=True)
class RetrievalModel:
    """One model."""

    id: str
    purpose: Literal["embedding", "rerank"]
    name: str
    repo: str
    """The maker's own."""
    license: str
    languages: str
    longest_input: int
    """Tokens; of a reranker those of query and document together."""
    quants: Mapping[str, Quant]
    """The first is the one that is used unless another is asked for."""
    dimensions: int = 0
    """Of its vectors; 0 for a reranker."""
    shortens: bool = False
    """Whether its vectors may be cut to fewer dimensions."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """What a text's vector is: the mean over its tokens, its first or its last token."""
    note: str = ""

    def memory_bytes(self, quant: str) -> int:
        """Return the bytes that an engine with these weights takes."""
        width = max(self.dimensions, 384)
        return self.quants[quant].bytes + PROCESS_BYTES + 4 * PASS_VALUES * width // 16


def entries() -> Mapping[str, RetrievalModel]:
    """Return every model by id."""
    return _load()


@cache
def _load() -> dict[str, RetrievalModel]:
    rows: dict[str, dict[str, Any]] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return {name: _model(name, row) for name, row in rows.items()}


def _model(name: str, row: Mapping[str, Any]) -> RetrievalModel:
    quants = {quant: Quant(name=quant, **details) for quant, details in row["quants"].items()}
    plain = {field: value for field, value in row.items() if field != "quants"}
    return RetrievalModel(id=name, quants=quants, **plain)


def find(name: str, purpose: str) -> tuple[RetrievalModel, str]:
    """Return the model of an id or a repo, and its quant; `name` may end in `:QUANT`.

    Raises UnknownModel with the names of all models for this purpose.
    """
    wanted, _, quant = name.strip().lower().removeprefix("hub:").partition(":")
    fitting = [model for model in entries().values() if model.purpose == purpose]
    for model in fitting:
        named = _quant(model, wanted, quant)
        if named:
            return model, named
    raise UnknownModel(name, tuple(model.id for model in fitting))


def _quant(model: RetrievalModel, name: str, quant: str) -> str:
    """Return the quant that a name means; empty where it is not this model's."""
    repos = {details.repo.lower(): key for key, details in model.quants.items() if details.repo}
    if name in repos:
        return repos[name]
    if name not in {model.id, model.repo.lower()}:
        return ""
    return quant if quant in model.quants else "" if quant else next(iter(model.quants))
