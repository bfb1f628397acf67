"""Files of lines: .env in this folder, which most frameworks load by themselves, aider's options, Open WebUI's env."""

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
    return _put_variables(text, wanted)


def _put_variables(text: str, wanted: Mapping[str, str]) -> str:
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


AIDER = Client("aider", "aider", _aider_path, _aider, "aider", ("aider",), needs=8_192)


def _webui_path(_: Mapping[str, str], person: Path) -> Path:
    return person / ".open-webui" / "mlxq.env"


def _webui(text: str, target: Target) -> str:
    """Set its variables (https://docs.openwebui.com/getting-started/env-configuration), those for embeddings too."""
    wanted = {
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "true",
        "OPENAI_API_BASE_URL": target.url,
        "OPENAI_API_KEY": target.key,
        "DEFAULT_MODELS": target.main.name,
        "TASK_MODEL_EXTERNAL": target.small.name,
    }
    return _put_variables(text, wanted | _vectors(target))


def _vectors(target: Target) -> dict[str, str]:
    """Return its variables for embeddings, where there is a model for them."""
    wanted = {
        "RAG_EMBEDDING_ENGINE": "openai",
        "RAG_EMBEDDING_MODEL": target.embedding,
        "RAG_OPENAI_API_BASE_URL": target.url,
        "RAG_OPENAI_API_KEY": target.key,
    }
    return wanted if target.embedding else {}


_START = "set -a; . ~/.open-webui/mlxq.env; set +a; open-webui serve"
WEBUI = Client(
    "open-webui",
    "Open WebUI",
    _webui_path,
    _webui,
    f"{_START}   (they count from its first start; later: Admin Panel, Settings, Connections)",
    ("sh", "-c", f'{_START} "$@"', "open-webui"),
    needs=8_192,
)
