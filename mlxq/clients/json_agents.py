"""Agents that name providers in a JSON file: Qwen Code, Crush, pi, OpenClaw, Cline and goose."""

from __future__ import annotations

import json
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
    """Write a provider, and the models for large and small tasks (schema.json of github.com/charmbracelet/crush)."""
    models = [_crush_model(tier) for tier in target.tiers]
    provider = {"name": "mlxq", "type": "openai-compat", "base_url": target.url, "api_key": target.key}
    text = jsonc.put(text, ("providers", "mlxq"), {**provider, "models": models})
    for size, tier in (("large", target.main), ("small", target.small)):
        choice = {"provider": "mlxq", "model": tier.name, "max_tokens": tier.max_tokens}
        text = jsonc.put(text, ("models", size), choice)
    return text


def _crush_model(tier: Tier) -> dict[str, Any]:
    limits = {"context_window": tier.context, "default_max_tokens": tier.max_tokens}
    costs = dict.fromkeys(("cost_per_1m_in", "cost_per_1m_out", "cost_per_1m_in_cached", "cost_per_1m_out_cached"), 0)
    can = {"can_reason": False, "supports_attachments": tier.engine.vision}
    return {"id": tier.name, "name": _title(tier), **limits, **costs, **can}


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


def _openclaw_path(environment: Mapping[str, str], person: Path) -> Path:
    if named := environment.get("OPENCLAW_CONFIG_PATH"):
        return Path(named)
    return Path(environment.get("OPENCLAW_STATE_DIR") or person / ".openclaw") / "openclaw.json"


def _openclaw(text: str, target: Target) -> str:
    """Write a provider beside the others, and have the agents use it (docs/gateway/local-models.md of OpenClaw)."""
    models = [_pi_model(tier) for tier in target.tiers]
    provider = {"baseUrl": target.url, "apiKey": target.key, "api": "openai-completions", "models": models}
    text = jsonc.put(text, ("models", "mode"), "merge")
    text = jsonc.put(text, ("models", "providers", "mlxq"), provider)
    try:
        return jsonc.put(text, ("agents", "defaults", "model", "primary"), f"mlxq/{target.main.name}")
    except ValueError:  # it may be a name alone, without fallbacks
        return jsonc.put(text, ("agents", "defaults", "model"), {"primary": f"mlxq/{target.main.name}"})


CLINE_PROVIDER = "openai-compatible"


def _cline_path(environment: Mapping[str, str], person: Path) -> Path:
    if named := environment.get("CLINE_PROVIDER_SETTINGS_PATH"):
        return Path(named)
    data = environment.get("CLINE_DATA_DIR") or Path(environment.get("CLINE_DIR") or person / ".cline") / "data"
    return Path(data) / "settings" / "providers.json"


def _cline(text: str, target: Target) -> str:
    """Write the provider that `cline auth` 3.0 writes, as it is used last."""
    access = {"baseUrl": target.url, "apiKey": target.key}
    settings = {"provider": CLINE_PROVIDER, "model": target.main.name, **access}
    text = jsonc.put(text, ("version",), 1)
    text = jsonc.put(text, ("lastUsedProvider",), CLINE_PROVIDER)
    if '"modes"' not in text:
        text = jsonc.put(text, ("modes",), {})
    text = jsonc.put(text, ("providers", CLINE_PROVIDER, "settings"), settings)
    text = jsonc.put(text, ("providers", CLINE_PROVIDER, "updatedAt"), "2026-01-01T00:00:00.000Z")
    return jsonc.put(text, ("providers", CLINE_PROVIDER, "tokenSource"), "manual")


GOOSE_PROVIDER = "custom_mlxq"


def _goose_path(environment: Mapping[str, str], person: Path) -> Path:
    root = Path(environment.get("XDG_CONFIG_HOME") or person / ".config") / "goose"
    return root / "custom_providers" / f"{GOOSE_PROVIDER}.json"


def _goose(_: str, target: Target) -> str:
    """Write a declarative provider that needs no keychain (crates/goose/src/config/declarative_providers.rs)."""
    content = {
        "name": GOOSE_PROVIDER,
        "engine": "openai",
        "display_name": "mlxq",
        "description": "On this machine",
        "api_key_env": "",
        "requires_auth": False,
        "headers": {"Authorization": f"Bearer {target.key}"},
        "base_url": f"{target.url}/chat/completions",
        "models": [{"name": tier.name, "context_limit": tier.context} for tier in target.tiers],
        "supports_streaming": True,
    }
    return json.dumps(content, indent=2) + "\n"


QWEN_CODE = Client("qwen-code", "Qwen Code", _qwen_path, _qwen, "qwen", ("qwen",), needs=32_768)
CRUSH = Client("crush", "Crush", _crush_path, _crush, "crush", ("crush",), needs=32_768)
_PI = ("pi", "--provider", "mlxq", "--model", "standard")
PI = Client("pi", "pi", _pi_path, _pi, " ".join(_PI), _PI, needs=16_384)
OPENCLAW = Client(
    "openclaw", "OpenClaw", _openclaw_path, _openclaw, "openclaw chat", ("openclaw", "chat"), needs=32_768
)
CLINE = Client("cline", "Cline", _cline_path, _cline, "cline", ("cline",), needs=32_768)
_GOOSE = ("goose", "session", "--provider", GOOSE_PROVIDER, "--model", "standard")
GOOSE = Client("goose", "goose", _goose_path, _goose, " ".join(_GOOSE), _GOOSE, needs=32_768)
