"""Codex: a profile in a file of its own, laid over config.toml by `codex --profile mlxq`.

Needs Codex 0.134 or later (https://developers.openai.com/codex/config-advanced); the user's own config.toml is not
changed. Codex speaks the Responses API alone, which the gateway has. Comments of a stream are no events to it: by
default it breaks off and asks again where a prompt is read for five minutes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mlxq.clients.client import Client, Target

COMPACT_SHARE = 0.8
"""Codex sums a session up before its window is full, so that the summary still fits."""


def _path(environment: Mapping[str, str], person: Path) -> Path:
    return Path(environment.get("CODEX_HOME") or person / ".codex") / "mlxq.config.toml"


def _write(_: str, target: Target) -> str:
    main = target.main
    return f"""\
# Written by `mlxq connect codex`; start it with: codex --profile mlxq
model = {json.dumps(main.name)}
review_model = {json.dumps(main.name)}
model_provider = "mlxq"
model_context_window = {main.context}
model_auto_compact_token_limit = {int(main.context * COMPACT_SHARE)}

[model_providers.mlxq]
name = "mlxq"
base_url = {json.dumps(target.url)}
wire_api = "responses"
experimental_bearer_token = {json.dumps(target.key, ensure_ascii=False)}
stream_idle_timeout_ms = {1000 * main.engine.answer_timeout_s}
"""


CLIENT = Client("codex", "Codex", _path, _write, "codex --profile mlxq", ("codex", "--profile", "mlxq"), needs=16_384)
