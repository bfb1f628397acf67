"""Agents that name providers in a JSON file: Qwen Code, Crush and pi."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxq.clients import jsonc
from mlxq.clients.client import Client, Target
from state.stack import Tier

KEY = "MLXQ_API_KEY"
"""The variable that Qwen Code's providers name; the file's `env` sets it."""


def _qwen_path(_: Mapping[str, str], person: Path) -> Path:
    return person / ".qwen" / "settings.json"


def _qwen(text: str, target: Target) -> str:
    """Write `modelProviders` (https://qwenlm.github.io/qwen-code-docs/en/users/configuration/model-providers)."""
    text = jsonc.put(text, ("env", KEY), target.key)
    text = jsonc.put(text, ("modelProviders", "openai"), [_qwen_model(tier, target) for tier in target.tiers])
    text = jsonc.put(text, ("security", "auth", "selectedType"), "openai")
    return jsonc.put(text, ("model", "name"), target.main.name)


def _qwen_model(tier: Tier, target: Target) -> dict[str, Any]:
    window = {"contextWindowSize": tier.context}
    return {"id": tier.name, "name": _title(tier), "baseUrl": target.url, "envKey": KEY, "generationConfig": window}


def _title(tier: Tier) -> str:
    return f"{tier.name} ({tier.model})"


def _crush_path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or person / ".config") / "crush" / "crush.json"


def _crush(text: str, target: Target) -> str:
    """Write a provider, and the models for large and small tasks (https://github.com/charmbracelet/crush)."""
    models = [_crush_model(tier) for tier in target.tiers]
    provider = {"name": "mlxq", "type": "openai-compat", "base_url": target.url, "api_key": target.key}
    text = jsonc.put(text, ("providers", "mlxq"), {**provider, "models": models})
    for size, tier in (("large", target.main), ("small", target.small)):
        choice = {"provider": "mlxq", "model": tier.name, "max_tokens": tier.max_tokens}
        text = jsonc.put(text, ("models", size), choice)
    return text


def _crush_model(tier: Tier) -> dict[str, Any]:
    limits = {"context_window": tier.context, "default_max_tokens": tier.max_tokens}
    return {"id": tier.name, "name": _title(tier), **limits, "supports_attachments": tier.engine.vision}


def _pi_path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("PI_CODING_AGENT_DIR") or person / ".pi" / "agent") / "models.json"


def _pi(text: str, target: Target) -> str:
    """Write a provider (docs/models.md of https://github.com/earendil-works/pi)."""
    provider = {"baseUrl": target.url, "api": "openai-completions", "apiKey": target.key}
    return jsonc.put(text, ("providers", "mlxq"), {**provider, "models": [_pi_model(tier) for tier in target.tiers]})


def _pi_model(tier: Tier) -> dict[str, Any]:
    return {
        "id": tier.name,
        "name": _title(tier),
        "reasoning": False,
        "input": ["text", "image"] if tier.engine.vision else ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": tier.context,
        "maxTokens": tier.max_tokens,
    }


QWEN_CODE = Client("qwen-code", "Qwen Code", _qwen_path, _qwen, "qwen", needs=32_768)
CRUSH = Client("crush", "Crush", _crush_path, _crush, "crush", needs=32_768)
PI = Client("pi", "pi", _pi_path, _pi, "pi --provider mlxq --model standard", needs=16_384)
