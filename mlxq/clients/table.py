"""All clients."""

from __future__ import annotations

from collections.abc import Mapping

from mlxq.clients import claude_code, codex, continue_dev, openai, opencode, zed
from mlxq.clients.client import Client

CLIENTS: Mapping[str, Client] = {
    module.CLIENT.name: module.CLIENT for module in (claude_code, codex, opencode, continue_dev, zed, openai)
}
