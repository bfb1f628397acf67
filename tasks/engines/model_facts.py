"""What an engine must know of a folder of weights: read from config.json and the chat template, no tensor loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from catalog import config_json
from catalog.engines import EFFORTS, kind
from state.errors import Damaged
from tasks.engines.base import ModelFacts
from tasks.weights.formats import headers, safetensors

STATE_VALUE_BYTES = 4
"""Recurrent states are kept in single precision (measured: 27B, 48 layers of 48 heads of 128 x 128, 146 MiB)."""
CACHE_VALUE_BYTES = 2
DRAFT_LAYERS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
"""How Qwen and DeepSeek call the number of draft heads in config.json."""
DRAFT_MARK = "mtp."
_READS_THOUGHTS = re.compile(r"split\(\s*['\"\\]+</think>")


def read(folder: Path) -> ModelFacts:
    """Return the facts of one folder of weights; those of plain attention where config.json cannot be read.

    A model whose config.json is damaged is started all the same, and the engine says what is wrong with it.
    """
    try:
        document = headers.read_json(folder / "config.json")
    except (OSError, Damaged):
        return ModelFacts()
    config = config_json.read(document)
    words = _template(folder)
    return ModelFacts(
        kind=kind(recurrent=config.recurs, sliding=config.slides, vision=config.vision),
        thinks="enable_thinking" in words,
        keeps_thinking="preserve_thinking" in words,
        reads_thoughts=_READS_THOUGHTS.search(words) is not None,
        efforts=_efforts(words),
        draft_heads=_draft_heads(folder, document),
        state_bytes=config.attention.recurrent * config.state_values * STATE_VALUE_BYTES,
        token_bytes=config.kv_values * CACHE_VALUE_BYTES,
    )


def _draft_heads(folder: Path, document: Mapping[str, Any]) -> bool:
    """Return whether the weights hold draft heads; many quants name them in config.json and leave them out."""
    if not any(document_part.get(name) for document_part in _parts(document) for name in DRAFT_LAYERS):
        return False
    with suppress(OSError, Damaged):
        return any(DRAFT_MARK in name for file in folder.glob("*.safetensors") for name in safetensors.read(file))
    return False


def _parts(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return config.json, and its part about text."""
    return [document, config_json.mapping(document.get("text_config"))]


def _efforts(words: str) -> tuple[str, ...]:
    """Return the words that a template knows for `reasoning_effort`; the usual three where it names fewer than two."""
    if "reasoning_effort" not in words:
        return ()
    named = tuple(effort for effort in EFFORTS if re.search(rf"['\"\\]{effort}['\"\\]", words))
    return named if len(named) > 1 else ("low", "medium", "high")


def _template(folder: Path) -> str:
    """Return the chat template, wherever the folder keeps it; empty where it has none."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if name.endswith(".jinja") or "chat_template" in text:
                return text
    return ""
