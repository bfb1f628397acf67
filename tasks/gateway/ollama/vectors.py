"""Ollama's embed and embeddings through an engine's embeddings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tasks.gateway.dialects.json_values import objects
from tasks.gateway.request_context import Call

_NS = 1_000_000_000


def to_embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for embeddings that asks for the same. `body`: of OllamaEmbed or OllamaEmbeddings, checked."""
    chosen = {"dimensions": body["dimensions"]} if "dimensions" in body else {}
    return {
        "model": body["model"],
        "input": body.get("input", body.get("prompt", "")),
        "encoding_format": "float",
    } | chosen


def embed(answer: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """Return an engine's answer as that of /api/embed."""
    return {
        "model": call.asked,
        "embeddings": [entry.get("embedding", []) for entry in objects(answer.get("data"))],
        "total_duration": int((time.monotonic() - call.began) * _NS),
        "load_duration": int(call.loaded_s * _NS),
        "prompt_eval_count": call.prompt_tokens,
    }


def embeddings(answer: Mapping[str, Any], call: Call) -> dict[str, Any]:  # noqa: ARG001 - as the other one
    """Return an engine's answer as that of /api/embeddings, for its one text."""
    entries = objects(answer.get("data"))
    return {"embedding": entries[0].get("embedding", []) if entries else []}
