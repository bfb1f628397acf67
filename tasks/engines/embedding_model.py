"""Vectors of texts and scores of documents, by mlx-embeddings' models; loaded only in the process that serves them.

mlx-embeddings 0.1.0 pools BERT and XLM-R by the mean whatever the model was trained for; what was trained on its first
token (BGE) is pooled here. vllm-mlx's own route does not: its vectors of bge-m3 are not the model's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import mlx.core as mx
import numpy as np
from tokenizers import Encoding, Tokenizer

Pooling = Literal["mean", "cls", "last"]


class Counted(Protocol):
    """What a batch is made of."""

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        ...


class TooLong(ValueError):
    """A text has more tokens than the model reads."""

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(f"Input {index} has {tokens:,} tokens, and the model reads at most {limit:,}.")


class Texts:
    """Turns texts into tokens, and refuses those that are longer than `limit` tokens."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._limit = limit

    def tokens(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Encoding]:
        """Return the tokens of each text, or of each pair of query and document. Raises TooLong."""
        encodings = self._tokenizer.encode_batch(list(texts))
        for index, encoding in enumerate(encodings):
            if len(encoding.ids) > self._limit:
                raise TooLong(index, len(encoding.ids), self._limit)
        return encodings


class _LeftOut(ModuleType):
    """A module of which nothing is used: each name in it is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def left_out(*modules: str) -> Generator[None]:
    """Keep `modules` from being loaded by what is imported meanwhile.

    mlx-embeddings imports transformers and mlx-vlm, for tokenizers and for models that see. Neither is used here.
    """
    sys.modules |= {name: _LeftOut(name) for name in modules if name not in sys.modules}
    try:
        yield
    finally:
        for name in modules:
            if isinstance(sys.modules[name], _LeftOut):
                del sys.modules[name]


class Embedder:
    """One embedding model."""

    def __init__(self, folder: Path, pooling: Pooling) -> None:
        """Load the weights in `folder`. Raises OSError, ValueError for an architecture that the library lacks."""
        with left_out("transformers", "mlx_vlm", "mlx_vlm.utils"):
            from mlx_embeddings import utils
        load: Any = getattr(utils, "load_model")  # noqa: B009 - its types are not written down
        self._model: Any = load(folder, path_to_repo=str(folder))
        self._pooling = pooling
        self._padding = _config(folder).get("pad_token_id") or 0

    def run(self, batch: Sequence[Encoding]) -> np.ndarray[Any, Any]:
        """Return a vector of length 1 for each text, float32, shape (texts, dimensions)."""
        ids, mask, _ = padded(batch, self._padding)
        output = self._model(ids, attention_mask=mask)
        vectors = normalized(output.last_hidden_state[:, 0]) if self._pooling == "cls" else output.text_embeds
        return np.array(vectors.astype(mx.float32))


class CrossEncoder:
    """One model that reads a query and a document together: BERT or XLM-R with a head of one score."""

    def __init__(self, folder: Path) -> None:
        """Load the weights in `folder`. Raises OSError, ValueError where they are no such model."""
        config = _config(folder)
        self._padding = config.get("pad_token_id") or 0
        self._bert = config["model_type"] == "bert"
        weights: dict[str, mx.array] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            weights |= cast("dict[str, mx.array]", mx.load(str(file)))
        self._head = {name: array for name, array in weights.items() if name.startswith("classifier.")}
        if not self._head or not _encoder_weights(weights):
            raise ValueError(f"{folder} is not supported: its weights have no head that scores.")
        self._model = _encoder(config, _encoder_weights(weights))

    def run(self, batch: Sequence[Encoding]) -> np.ndarray[Any, Any]:
        """Return the relevance of each pair, 0 to 1, float32, shape (pairs,)."""
        ids, mask, types = padded(batch, self._padding)
        if self._bert:
            logits = self._linear(self._model(ids, token_type_ids=types, attention_mask=mask).pooler_output, "")
        else:
            first = self._model(ids, attention_mask=mask).last_hidden_state[:, 0]
            logits = self._linear(mx.tanh(self._linear(first, "dense.")), "out_proj.")
        return np.array(mx.sigmoid(logits[:, 0].astype(mx.float32)))

    def _linear(self, values: mx.array, layer: str) -> mx.array:
        return values @ self._head[f"classifier.{layer}weight"].T + self._head[f"classifier.{layer}bias"]


def _encoder(config: dict[str, Any], weights: dict[str, mx.array]) -> Any:
    with left_out("transformers", "mlx_vlm", "mlx_vlm.utils"):
        from mlx_embeddings.models import bert, xlm_roberta
    module: Any = bert if config["model_type"] == "bert" else xlm_roberta
    model = module.Model(module.ModelArgs.from_dict(config | {"add_pooling_layer": False}))
    model.load_weights(list(model.sanitize(weights).items()))
    mx.eval(model.parameters())
    model.eval()
    return model


def _encoder_weights(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    prefixes = ("bert.", "roberta.")
    return {name.partition(".")[2]: array for name, array in weights.items() if name.startswith(prefixes)}


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


def padded(batch: Sequence[Encoding], padding: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return tokens, mask and segment of each text, each (texts, tokens of the longest), padded on the right."""
    shape = (len(batch), max(len(encoding.ids) for encoding in batch))
    ids, mask, types = np.full(shape, padding, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, encoding in enumerate(batch):
        length = len(encoding.ids)
        ids[row, :length], mask[row, :length], types[row, :length] = encoding.ids, 1, encoding.type_ids
    return mx.array(ids), mx.array(mask), mx.array(types)


def normalized(vectors: mx.array) -> mx.array:
    """Return vectors of length 1."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def batches(encodings: Sequence[Counted], budget: int) -> list[list[int]]:
    """Return the indices of the texts of each forward pass: of similar length, so that little of it is padding.

    `budget`: padded tokens of one pass, unless one text alone has more.
    """
    order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))
    groups: list[list[int]] = []
    for index in order:
        if not groups or (len(groups[-1]) + 1) * len(encodings[index].ids) > budget:
            groups.append([])
        groups[-1].append(index)
    return groups


def shortened(vectors: np.ndarray[Any, Any], dimensions: int) -> np.ndarray[Any, Any]:
    """Return the first `dimensions` of each vector, at length 1 again (Matryoshka, arXiv 2205.13147)."""
    if dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    return np.ascontiguousarray(cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12))
