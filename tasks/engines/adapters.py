"""Every engine that mlxq can serve a model with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from catalog.engines import FALLBACK
from tasks.engines import embedding, rapid_mlx, vllm_mlx
from tasks.engines.base import Adapter
from tasks.engines.mlx_lm_sharded import adapter as mlx_lm_sharded
from tasks.plan.exit_causes import CauseRule

ENGINES: Mapping[str, Adapter] = {engine.name: engine for engine in (vllm_mlx.ENGINE, rapid_mlx.ENGINE)}
"""Those that chats are chosen from."""
_ALL: Mapping[str, Adapter] = {
    **ENGINES,
    embedding.NAME: embedding.ENGINE,
    mlx_lm_sharded.NAME: mlx_lm_sharded.ENGINE,
}


def named(release: str) -> Adapter:
    """Return the adapter of a release such as "rapid-mlx 0.16.10", or of an engine's bare name.

    A service row that was written before engines had names is served by the fallback.
    """
    return _ALL.get(release.partition(" ")[0], ENGINES[FALLBACK])


def rules(release: str) -> Sequence[CauseRule]:
    """Return what the last words of this release mean."""
    return named(release).rules
