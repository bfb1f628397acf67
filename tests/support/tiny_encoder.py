"""Small encoders of the real classes, with weights from a seed: what BGE's models are, in a few kilobytes.

numpy, safetensors and tokenizers alone: the reference program (embedding_reference.py) makes them beside torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 32, 4, 2, 64, 80
WORDS = ("mac", "model", "server", "answers", "cat", "dog", "sleeps", "runs", "fast", "the", "a", "on", "of", "memory")
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    "xlm-roberta": ("<s>", "<pad>", "</s>", "<unk>"),
}
PADDING = {"bert": 0, "xlm-roberta": 1}


def make(folder: Path, kind: str, *, scores: bool, seed: int = 7) -> Path:
    """Write a model of type `kind` (bert or xlm-roberta); with `scores` it has the head of a cross-encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate((*SPECIAL[kind], *WORDS))}
    (folder / "config.json").write_text(json.dumps(config(kind, len(vocabulary), scores=scores)))
    save_file(weights(kind, len(vocabulary), scores=scores, seed=seed), folder / "model.safetensors")
    tokenizer(kind, vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def config(kind: str, vocabulary: int, *, scores: bool) -> dict[str, Any]:
    """Return config.json."""
    prefix = "Bert" if kind == "bert" else "XLMRoberta"
    return {
        "architectures": [f"{prefix}ForSequenceClassification" if scores else f"{prefix}Model"],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "vocab_size": vocabulary,
        "type_vocab_size": 2 if kind == "bert" else 1,
        "pad_token_id": PADDING[kind],
        "layer_norm_eps": 1e-12 if kind == "bert" else 1e-5,
        "hidden_act": "gelu",
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def weights(kind: str, vocabulary: int, *, scores: bool, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return every tensor by its name in Hugging Face's checkpoints."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    prefix = {"bert": "bert.", "xlm-roberta": "roberta."}[kind] if scores else ""

    def add(name: str, *shape: int, at: float = 0.0) -> None:
        tensors[name] = (at + random.normal(0, 0.3, shape)).astype(np.float32)

    def linear(name: str, inner: int, outer: int) -> None:
        add(f"{name}.weight", outer, inner)
        add(f"{name}.bias", outer)

    def norm(name: str) -> None:
        add(f"{name}.weight", HIDDEN, at=1.0)
        add(f"{name}.bias", HIDDEN)

    rows = {"word": vocabulary, "position": POSITIONS, "token_type": 2 if kind == "bert" else 1}
    for name, count in rows.items():
        add(f"{prefix}embeddings.{name}_embeddings.weight", count, HIDDEN)
    norm(f"{prefix}embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"{prefix}encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", HIDDEN, INNER)
        linear(f"{layer}.output.dense", INNER, HIDDEN)
        norm(f"{layer}.output.LayerNorm")
    if kind == "bert" or not scores:
        linear(f"{prefix}pooler.dense", HIDDEN, HIDDEN)
    if scores and kind == "bert":
        linear("classifier", HIDDEN, 1)
    elif scores:
        linear("classifier.dense", HIDDEN, HIDDEN)
        linear("classifier.out_proj", HIDDEN, 1)
    return tensors


def tokenizer(kind: str, vocabulary: dict[str, int]) -> Tokenizer:
    """Return a tokenizer of whole words, with the marks and segments of the real one."""
    unknown = next(word for word in vocabulary if "unk" in word.lower())
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    begin, end = ("[CLS]", "[SEP]") if kind == "bert" else ("<s>", "</s>")
    pair = f"{begin} $A {end} $B:1 {end}:1" if kind == "bert" else f"{begin} $A {end} {end} $B {end}"
    marks = [(mark, vocabulary[mark]) for mark in (begin, end)]
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", pair=pair, special_tokens=marks)
    return made
