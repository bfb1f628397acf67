"""The environment of LiteLLM's proxy: where it is, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from state.paths import Home
from tasks.engines import installed
from tasks.front.plan import LITELLM

PROGRAM = Path(__file__).with_name("front_program.py")
LOCK = Path(__file__).with_name("locks") / f"litellm-proxy-{LITELLM}.txt"
PROOF = "proof.json"


def folder(home: Home) -> Path:
    """Return where the proxy's environment lives."""
    return home.front / f"litellm-proxy-{LITELLM}"


def python(home: Home) -> Path | None:
    """Return the interpreter of the proxy's environment; None where it is not installed, or its Python is gone."""
    environment = folder(home)
    proof = _proof(environment)
    return installed.python(environment) if proof is not None and installed.runs(environment, proof) else None


def _proof(environment: Path) -> dict[str, Any] | None:
    try:
        return json.loads((environment / PROOF).read_bytes())
    except (OSError, ValueError):
        return None
