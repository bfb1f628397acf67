"""Files of lines: .env in this folder, which most frameworks load by themselves, and aider's options in the home."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from mlxq.clients.client import Client, Target


def _path(_: Mapping[str, str], __: Path) -> Path:
    return Path.cwd() / ".env"


def _write(text: str, target: Target) -> str:
    wanted = {"OPENAI_BASE_URL": target.url, "OPENAI_API_KEY": target.key, "OPENAI_MODEL": target.main.name}
    for name, value in wanted.items():
        text = _put_line(text, rf"(?:export\s+)?{name}\s*=", f"{name}={value}")
    return text


def _put_line(text: str, start: str, line: str) -> str:
    """Put a line in place of those that begin as the pattern `start`, else at the end."""
    pattern = re.compile(rf"^{start}.*$", re.MULTILINE)
    if pattern.search(text):
        return pattern.sub(lambda _: line, text)
    return text + ("" if not text or text.endswith("\n") else "\n") + f"{line}\n"


CLIENT = Client("openai", "OpenAI's libraries", _path, _write, "Load .env in your program, or: set -a; . ./.env")


def _aider_path(_: Mapping[str, str], person: Path) -> Path:
    return person / ".aider.conf.yml"


def _aider(text: str, target: Target) -> str:
    """Set its options (https://aider.chat/docs/config/aider_conf.html), line by line."""
    options = {
        "model": f"openai/{target.main.name}",
        "weak-model": f"openai/{target.small.name}",
        "openai-api-base": target.url,
        "openai-api-key": target.key,
        "show-model-warnings": False,
    }
    for name, value in options.items():
        text = _put_line(text, rf"{name}\s*:", f"{name}: {json.dumps(value, ensure_ascii=False)}")
    return text


AIDER = Client("aider", "aider", _aider_path, _aider, "aider", needs=8_192)
