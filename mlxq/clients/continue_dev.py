"""Continue: a configuration in a file of its own, chosen in its list (https://docs.continue.dev/reference).

It reads every YAML file of ~/.continue/assistants next to the user's own config.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxq.clients.client import Client, Target
from state.stack import Tier

WORK, SMALL = ["chat", "edit", "apply"], ["summarize"]


def _path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("CONTINUE_GLOBAL_DIR") or person / ".continue") / "assistants" / "mlxq.yaml"


def _write(_: str, target: Target) -> str:
    import yaml

    content = {
        "name": "mlxq",
        "version": "1.0.0",
        "schema": "v1",
        "models": [_model(tier, target) for tier in target.tiers],
    }
    return "# Written by `mlxq connect continue`\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _model(tier: Tier, target: Target) -> dict[str, Any]:
    return {
        "name": f"mlxq {tier.name}",
        "provider": "openai",
        "model": tier.name,
        "apiBase": target.url,
        "apiKey": target.key,
        "roles": _roles(tier, target),
        **({"capabilities": ["tool_use"]} if tier.engine.tool_parser else {}),
        "defaultCompletionOptions": {"contextLength": tier.context, "maxTokens": tier.max_tokens},
    }


def _roles(tier: Tier, target: Target) -> list[str]:
    """Return the roles of a tier in Continue; every tier can be used for chat."""
    work = WORK if tier == target.main else ["chat"]
    return [*work, *(SMALL if tier == target.small else [])]


CLIENT = Client("continue", "Continue", _path, _write, "Choose mlxq in Continue's list of configurations.")
