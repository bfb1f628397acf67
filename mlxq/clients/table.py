"""All clients."""

from __future__ import annotations

from collections.abc import Mapping

from mlxq.clients import claude_code, codex, continue_dev, hermes, json_agents, openai, opencode, zed
from mlxq.clients.client import Client

CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        *(claude_code.CLIENT, codex.CLIENT, opencode.CLIENT),
        *(json_agents.QWEN_CODE, json_agents.CRUSH, json_agents.PI, openai.AIDER),
        *(json_agents.OPENCLAW, json_agents.CLINE, json_agents.GOOSE, hermes.CLIENT, openai.WEBUI),
        *(continue_dev.CLIENT, zed.CLIENT, openai.CLIENT),
    )
}
