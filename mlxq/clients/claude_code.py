"""Claude Code: the `env` of its settings.json (https://code.claude.com/docs/en/settings)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlxq.clients import jsonc
from mlxq.clients.client import Client, Target


def _path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("CLAUDE_CONFIG_DIR") or person / ".claude") / "settings.json"


def _write(text: str, target: Target) -> str:
    for name, value in variables(target).items():
        text = jsonc.put(text, ("env", name), value)
    return text


def variables(target: Target) -> dict[str, str]:
    """Return the variables. Without the window Claude Code assumes 200,000 tokens for any model."""
    main, small = target.main, target.small
    return {
        "ANTHROPIC_BASE_URL": target.root,
        "ANTHROPIC_AUTH_TOKEN": target.key,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": main.name,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": main.name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": small.name,
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(main.context),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(main.context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(main.max_tokens),
    }


CLIENT = Client("claude-code", "Claude Code", _path, _write, "claude", ("claude",), needs=32_768)
