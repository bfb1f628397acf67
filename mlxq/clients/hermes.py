"""Hermes Agent: the block `model` of its config.yaml (https://github.com/NousResearch/hermes-agent)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mlxq.clients.client import Client, Target

_BLOCK = re.compile(r"^model[ \t]*:.*\n?(?:(?:[ \t]+\S.*|[ \t]*)(?:\n|\Z))*", re.MULTILINE)
"""A key at the margin, and the lines behind it that are empty or set in."""


def _path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("HERMES_HOME") or person / ".hermes") / "config.yaml"


def _write(text: str, target: Target) -> str:
    """Put the gateway in the block `model`; all else stays byte for byte. Raises ValueError with the line."""
    before = _parsed(text)
    own = before.get("model")
    fields = cast("dict[str, Any]", own) if isinstance(own, dict) else {}
    block = _dump({"model": fields | _model(target)})
    if "model" not in before:
        return text + ("" if not text or text.endswith("\n") else "\n") + block
    after = _BLOCK.sub(lambda match: block + "\n" * _blank_lines(match[0]), text, count=1)
    if _parsed(after) | {"model": None} != before | {"model": None}:
        raise ValueError("`model` is not a block at the margin of the file")
    return after


def _model(target: Target) -> dict[str, Any]:
    return {
        "default": target.main.name,
        "provider": "custom",
        "base_url": target.url,
        "api_key": target.key,
        "context_length": target.main.context,
    }


def _blank_lines(block: str) -> int:
    """Return how many empty lines a block ends with."""
    return len(block) - len(block.rstrip("\n")) - 1 if block.endswith("\n\n") else 0


def _parsed(text: str) -> dict[str, Any]:
    """Return the file's content. Raises ValueError with the line."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        raise ValueError(f"line {mark.line + 1}: it is no YAML" if mark else "it is no YAML") from problem
    if content is not None and not isinstance(content, dict):
        raise ValueError("line 1: it is no mapping")
    return cast("dict[str, Any]", content or {})


def _dump(content: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


CLIENT = Client("hermes", "Hermes Agent", _path, _write, "hermes", ("hermes",), needs=64_000)
