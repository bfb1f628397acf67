"""A described model keeps what the installed mlx-lm really keeps: every family is built small, and reads a prompt."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.families import FAMILIES, WINDOW, config_of
from support.published_configs import CONFIGS

from catalog import fit
from catalog.description.describe import describe
from catalog.description.geometry import shape
from catalog.description.parameters import parameters
from catalog.description.repo_facts import RepoFacts
from catalog.load import entries

CHUNK, SHORT, LONG = 32, 96, 128
"""Tokens that are read at once, and of a prompt and its continuation: more than a window and a chunk."""


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """Keep MLX from fusing kernels, of which a compiler makes each in a second; what is kept stays the same."""
    import mlx.core as mx

    mx.disable_compile()
    yield
    mx.enable_compile()


@dataclass(frozen=True)
class Made:
    """A model of mlx-lm with random weights."""

    model: Any
    config: dict[str, Any]

    def facts(self) -> RepoFacts:
        """Return what its files would say."""
        tensors = {name: {"dtype": "F32", "shape": list(value.shape)} for name, value in flat(self.model.parameters())}
        return RepoFacts("hub:someone/something", self.config, 1, tensors)

    def read(self, *lengths: int) -> Iterator[list[Any]]:
        """Yield the caches of one prompt after each number of tokens in `lengths`."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache, read = make_prompt_cache(self.model), 0
        for tokens in lengths:
            for _ in range((tokens - read) // CHUNK):
                mx.eval(self.model(mx.zeros((1, CHUNK), dtype=mx.int32), cache=cache))
            read = tokens
            yield list(_leaves(cache))


def flat(tree: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a tree with their names."""
    from mlx import utils

    tools: Any = utils
    return tools.tree_flatten(tree)


def _leaves(caches: Any) -> Iterator[Any]:
    """Return each cache, those that belong together one by one."""
    for cache in caches:
        if inner := getattr(cache, "caches", None):
            yield from _leaves(inner)
        else:
            yield cache


def values(caches: list[Any], *, kind: str) -> int:
    """Return how many values the caches of a class hold."""
    return sum(int(array.size) for cache in caches if type(cache).__name__ == kind for _, array in flat(cache.state))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def made(request: pytest.FixtureRequest) -> Made:
    from mlx_lm.utils import MODEL_REMAPPING

    config = config_of(request.param)
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(request.param, request.param)}")
    return Made(module.Model(module.ModelArgs.from_dict(config_of(request.param))), config)


def test_layers_keep_what_mlx_lm_keeps(made: Made):
    """Tokens that add to the cache, the tokens of sliding layers while a chunk is read, and states of fixed size."""
    told = shape(made.facts()).attention
    caches = made.read(SHORT, LONG)
    before, long = values(next(caches), kind="KVCache"), next(caches)

    grown = values(long, kind="KVCache") - before
    assert grown == fit.token_bytes(told) // fit.CACHE_VALUE_BYTES * (LONG - SHORT)
    window = told.sliding * 2 * told.kv_heads * told.head_dim * (WINDOW + CHUNK - 1)
    assert values(long, kind="RotatingKVCache") == window
    states = [cache.cache for cache in long if type(cache).__name__ == "ArraysCache"]
    keeps = told.recurrent_width * (told.recurrent_state or fit.STATE_SIZE)
    assert told.recurrent == sum(any(array.size == keeps for array in arrays) for arrays in states)


def test_all_parameters_are_counted(made: Made):
    facts = made.facts()
    counted = parameters(facts, shape(facts).layers)

    assert counted
    assert counted.total == sum(value.size for _, value in flat(made.model.parameters()))
    assert counted.spread in {1.0, 2.0}
    assert (counted.active < counted.text) is (counted.spread > 1 or "gemma3n" in made.config["model_type"])


def _packs(_: str, layer: Any) -> bool:
    """Return whether a layer can be packed in groups of 64."""
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 64 == 0


def published(name: str) -> RepoFacts:
    """Return what the files of a well-known model say, in four bits; nothing of its weights is made."""
    from mlx import nn
    from mlx_lm.utils import MODEL_REMAPPING

    config = json.loads(json.dumps(CONFIGS[name]))
    kind = config["model_type"]
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    packer: Any = nn
    packer.quantize(model, 64, 4, class_predicate=_packs)
    tied = kind.startswith("gemma3")  # mlx-lm makes a head for it, and drops it where the files have none
    types = {"uint32": "U32", "float32": "BF16", "bfloat16": "BF16"}
    tensors = {
        where: {"dtype": types[str(value.dtype).rpartition(".")[2]], "shape": list(value.shape)}
        for where, value in flat(model.parameters())
        if not (tied and "lm_head" in where)
    }
    quantized = CONFIGS[name] | {"quantization": {"group_size": 64, "bits": 4}}
    return RepoFacts(f"hub:someone/{name}", quantized, 1, tensors)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_described_model_is_the_catalog_s_own(name: str):
    """Geometry to the last number; parameters as near as the makers' round numbers are, which leave some out."""
    made, known = describe(published(name)).model, entries()[name]

    assert (made.attention, made.layers, made.hidden_size) == (known.attention, known.layers, known.hidden_size)
    assert (made.context, made.architecture, made.moe) == (known.context, known.architecture, known.moe)
    assert made.expert_spread == pytest.approx(known.expert_spread, rel=0.01)
    if not known.vision or known.text_params_b != known.total_params_b:
        assert made.text_params_b == pytest.approx(known.text_params_b, rel=0.05)
    assert 0.9 * known.active_params_b <= made.active_params_b <= 1.5 * known.active_params_b
    assert made.input_params_b == pytest.approx(known.input_params_b, rel=0.02, abs=0.01)


COMPUTED = [
    (name, quant.name)
    for name in sorted(CONFIGS)
    for quant in entries()[name].quants.values()
    if quant.bytes_from.startswith("computed") and quant.name in {"int4", "int8", "bf16"}
]
"""Quants of which no published size is known, and the shapes of whose tensors are."""


@pytest.mark.parametrize(("name", "quant"), COMPUTED)
def test_a_computed_size_is_that_of_the_tensors(name: str, quant: str):
    """As mlx-lm packs them, with the tower that the catalog adds; no tensor is made."""
    from mlx_lm.utils import MODEL_REMAPPING, quantize_model

    config = json.loads(json.dumps(CONFIGS[name]))
    kind = config["model_type"]
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    model: Any = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    if quant != "bf16":
        model, _ = quantize_model(model, config, 64, int(quant.removeprefix("int")))
    widths = {"uint32": 4, "float32": 2, "bfloat16": 2, "float16": 2}
    tied = kind.startswith("gemma3")
    size = sum(
        value.size * widths[str(value.dtype).rpartition(".")[2]]
        for where, value in flat(model.parameters())
        if not (tied and "lm_head" in where)
    )
    known = entries()[name]

    assert known.quants[quant].bytes == pytest.approx(size + known.tower_bytes, rel=0.01)
