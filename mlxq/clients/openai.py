"""OpenAI's libraries: a .env file in this folder, which dotenv and most frameworks load by themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mlxq.clients.client import Client, Target


def _path(_: Mapping[str, str], __: Path) -> Path:
    return Path.cwd() / ".env"


def _write(text: str, target: Target) -> str:
    wanted = {"OPENAI_BASE_URL": target.url, "OPENAI_API_KEY": target.key, "OPENAI_MODEL": target.main.name}
    for name, value in wanted.items():
        line = f"{name}={value}"
        pattern = re.compile(rf"^(?:export\s+)?{name}\s*=.*$", re.MULTILINE)
        if pattern.search(text):
            text = pattern.sub(lambda _, line=line: line, text)
        else:
            text = text + ("" if not text or text.endswith("\n") else "\n") + f"{line}\n"
    return text


CLIENT = Client("openai", "OpenAI's libraries", _path, _write, "Load .env in your program, or: set -a; . ./.env")
