"""OpenCode: a provider in opencode.json (https://opencode.ai/docs/providers)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxq.clients import jsonc
from mlxq.clients.client import Client, Target
from state.stack import Tier


def _path(environment: Mapping[str, str], person: Path) -> Path:
    """Return the file that exists; OpenCode reads both extensions."""
    folder = Path(environment.get("XDG_CONFIG_HOME") or person / ".config") / "opencode"
    named = environment.get("OPENCODE_CONFIG")
    with_comments = folder / "opencode.jsonc"
    return Path(named) if named else with_comments if with_comments.exists() else folder / "opencode.json"


def _write(text: str, target: Target) -> str:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "mlxq",
        "options": {"baseURL": target.url, "apiKey": target.key},
        "models": {tier.name: _model(tier) for tier in target.tiers},
    }
    if not text.strip():
        text = jsonc.put(text, ("$schema",), "https://opencode.ai/config.json")
    text = jsonc.put(text, ("provider", "mlxq"), provider)
    text = jsonc.put(text, ("model",), f"mlxq/{target.main.name}")
    return jsonc.put(text, ("small_model",), f"mlxq/{target.small.name}")


def _model(tier: Tier) -> dict[str, Any]:
    return {
        "name": f"{tier.name} ({tier.model})",
        "tool_call": tier.engine.tool_parser is not None,
        "limit": {"context": tier.context, "output": tier.max_tokens},
    }


CLIENT = Client("opencode", "OpenCode", _path, _write, "opencode", ("opencode",), needs=16_384)
