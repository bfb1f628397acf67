r"""Make tests/fixtures/embedding_reference.json: what transformers and torch compute for the models of the tests.

    uv run --no-project --with torch --with 'transformers<5' --with numpy \\
        tests/support/embedding_reference.py FOLDER-OF-ALL-MINILM-L6-V2

The vectors of all-MiniLM-L6-v2 are as its card makes them: mean over the tokens, then length 1. Neither package is
one of mlxq's: the file is kept, and was made by torch 2.x on a CPU in float32.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_encoder
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

TEXTS = (
    "This is an example sentence",
    "Each sentence is converted",
    "A Mac serves several models at once.",
    "Ein Satz auf Deutsch, mit Umlauten: äöü.",
    "短い日本語の文",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "x",
    " ".join(["The engine keeps what it read before, and reads a prompt once."] * 12),
)
SMALL_TEXTS = ("the mac runs a server", "a cat sleeps", "fast memory of the model answers on the mac")
QUERY = "the mac answers"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "embedding_reference.json"


def main() -> None:
    """Write the file."""
    minilm = vectors(AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1]), TEXTS, "mean")
    small: dict[str, list[str]] = {}
    ranks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in tiny_encoder.SPECIAL:
            plain = tiny_encoder.make(Path(folder, kind), kind, scores=False)
            small[kind] = vectors(AutoModel.from_pretrained(plain), _tokens(plain, kind), SMALL_TEXTS, "cls")
            scoring = tiny_encoder.make(Path(folder, f"{kind}-ranks"), kind, scores=True)
            ranks[kind] = scored(scoring, kind)
    document = {
        "texts": TEXTS,
        "minilm": minilm,
        "small_texts": SMALL_TEXTS,
        "cls": small,
        "query": QUERY,
        "scores": ranks,
    }
    FIXTURE.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _tokens(folder: Path, kind: str) -> PreTrainedTokenizerFast:
    padding = tiny_encoder.SPECIAL[kind][tiny_encoder.PADDING[kind]]
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token=padding)


def vectors(model: Any, tokenizer: Any, texts: Sequence[str], pooling: str) -> list[str]:
    """Return each text's vector as 32-bit floats in base64."""
    made = []
    for text in texts:  # alone, so that no padding is in it
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        pooled = states.mean(0) if pooling == "mean" else states[0]
        made.append(
            base64.b64encode(torch.nn.functional.normalize(pooled, dim=0).numpy().astype("<f4").tobytes()).decode()
        )
    return made


def scored(folder: Path, kind: str) -> list[float]:
    """Return the relevance of each small text for the query."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), _tokens(folder, kind)
    made = []
    for text in SMALL_TEXTS:
        inputs = tokenizer(QUERY, text, return_tensors="pt")
        if kind != "bert":
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            made.append(round(torch.sigmoid(model(**inputs).logits[0, 0]).item(), 6))
    return made


if __name__ == "__main__":
    main()
