"""Zed: a provider in settings.json; the key goes to Zed's keychain or MLXQ_API_KEY, never into the file.

Formats: OpenAiCompatibleAvailableModel in zed's crates/settings_content, https://zed.dev/docs/ai/use-api-access.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxq.clients import jsonc
from mlxq.clients.client import Client, Target
from state.stack import Tier

SMALL_JOBS = ("commit_message_model", "thread_summary_model")


def _path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or person / ".config") / "zed" / "settings.json"


def _write(text: str, target: Target) -> str:
    provider = {"api_url": target.url, "available_models": [_model(tier) for tier in target.tiers]}
    text = jsonc.put(text, ("language_models", "openai_compatible", "mlxq"), provider)
    text = jsonc.put(text, ("agent", "default_model"), {"provider": "mlxq", "model": target.main.name})
    for job in SMALL_JOBS:
        text = jsonc.put(text, ("agent", job), {"provider": "mlxq", "model": target.small.name})
    return text


def _model(tier: Tier) -> dict[str, Any]:
    return {
        "name": tier.name,
        "display_name": f"{tier.name} ({tier.model})",
        "max_tokens": tier.context,
        "max_output_tokens": tier.max_tokens,
        "capabilities": {
            "tools": tier.engine.tool_parser is not None,
            "images": tier.engine.vision,
            "parallel_tool_calls": False,
            "prompt_cache_key": False,
        },
    }


CLIENT = Client(
    "zed",
    "Zed",
    _path,
    _write,
    "In Zed: agent: open settings, LLM Providers, mlxq, paste the key above.",
    holds_key=False,
)
