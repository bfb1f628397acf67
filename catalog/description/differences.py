"""Where a model file of the catalog and the config.json of a repo do not say the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from catalog.description.geometry import WINDOW_UNKNOWN, Geometry
from catalog.model import Model

WORDS = {
    "full": "layers of full attention",
    "sliding": "sliding layers",
    "recurrent": "recurrent layers",
    "kv_heads": "heads of the cache",
    "head_dim": "the size of a head",
    "window": "the window of a sliding layer",
    "full_kv_heads": "heads of the cache in full layers",
    "full_head_dim": "the size of a head in full layers",
    "latent": "values of the compressed cache",
    "query_heads": "query heads",
    "recurrent_width": "channels of a recurrent layer",
    "recurrent_state": "values that a channel keeps",
}
"""What the fields of an attention section are called."""


def differences(model: Model, geometry: Geometry) -> Iterator[str]:
    """Return in words what differs. A window that the catalog shortens is its choice, a longer one is none.

    A field of neither side says nothing, and one that the repo does not tell is not compared.
    """
    yield from _differs("layers", model.layers, geometry.layers)
    yield from _differs("the hidden size", model.hidden_size, geometry.hidden_size)
    cataloged, stated = asdict(model.attention), asdict(geometry.attention)
    for field, words in WORDS.items():
        if stated[field] or field in {"full", "sliding", "recurrent"}:
            yield from _differs(words, cataloged[field], stated[field])
    window_stated = not any(words.startswith(WINDOW_UNKNOWN) for words in geometry.unknown)
    if window_stated and model.context > geometry.context:
        yield from _differs("the window", model.context, geometry.context)


def _differs(words: str, cataloged: int, stated: int) -> Iterator[str]:
    if cataloged != stated:
        yield f"{words}: {cataloged:,} in the catalog, {stated:,} in config.json"
