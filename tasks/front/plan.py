"""What the front is told: the proxy's configuration, what may pass, and the nodes that it may reach. Pure.

The settings are what LiteLLM 1.108.14 was measured to obey: `num_retries`, `allowed_fails` and `cooldown_time` count
under `router_settings` alone, and a group with one deployment is never cooled down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from catalog.intent import TIERS
from state.classes import dataclass
from state.fleet import Node, ServedModel
from tasks.plan.environment import kept, marker
from tasks.plan.gateway import ANSWER_SECONDS, CHECK, LITELLM_QUIET

SERVICE = "front"
HEALTH = "/health/liveliness"
"""Answers 200 without a key once the proxy takes requests."""
LITELLM = "1.108.14"
"""The release of the proxy: the one that mlxq itself calls for the cloud (pyproject.toml; a test compares them)."""
COOLDOWN_S = 5
"""How long a node that failed gets no request. One that refuses costs milliseconds and one that cannot be reached
nothing (tasks/front/node_transport.py), so one that is back should soon be used."""
PIN_S = 1800
"""How long a conversation that pauses keeps its node; an engine drops prompts that others need the room of."""
FIRST, STANDING_IN = 1, 2
"""LiteLLM's `order` of a tier's nodes: those that have it; while they are away the others, with what they have."""
REDIS_S = 0.2
"""How long Redis may take: it is asked within each request, and everything works without it."""
PATHS = {
    "chat": ("/v1/chat/completions", "/chat/completions"),
    "completions": ("/v1/completions", "/completions"),
    "responses": ("/v1/responses", "/responses"),
    "messages": ("/v1/messages",),
    "embeddings": ("/v1/embeddings", "/embeddings"),
}
"""What may be posted to, by the names of the gateway's dialects."""
OBEYED = ("disable_fallbacks",)
"""Fields of the gateway's that LiteLLM would obey itself, and so takes out."""

_NO_PAGES = {
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
}
_DIALECTS = {"LITELLM_USE_CHAT_COMPLETIONS_URL_FOR_ANTHROPIC_MESSAGES": "True"}
"""With `use_chat_completions_api`: messages and responses are asked of a node as a chat, which each node answers."""
_REDIS = {
    "REDIS_SOCKET_TIMEOUT": str(REDIS_S),
    "REDIS_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "1",
    "REDIS_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "2",
    "REDIS_CIRCUIT_BREAKER_TIMEOUT_MIN_DURATION": "0",
}


@dataclass(frozen=True)
class FrontFiles:
    """What the front reads, as values to be written: YAML, JSON, JSON."""

    proxy: dict[str, Any]
    """front.yaml, LiteLLM's configuration; it holds the keys of the nodes."""
    policy: dict[str, Any]
    """policy.json: what may pass, and who may ask."""
    nodes: dict[str, str]
    """nodes.json: base URL -> the certificate of the one authority that is trusted for it, as PEM."""


def files(
    nodes: Sequence[Node],
    keys: Mapping[str, str],
    *,
    schemas: Mapping[str, dict[str, Any]],
    names: Mapping[str, str],
    own: str = "",
    ring: str,
    master: str,
    redis: str = "",
) -> FrontFiles:
    """Return what the front reads.

    `nodes`: all that may be asked, this machine's (`own`) among them; `keys`: what opens each. `schemas`: dialect ->
    JSON schema of its requests. `names`: other names and patterns -> group. `ring`: the file of the apps' keys;
    `master`: SHA-256 of mlxq's own key, in hex. `redis`: a URL, empty where each front stands alone.
    """
    usable, redis = [node for node in nodes if node.name in keys and node.offered], bounded(redis)
    deployments = _deployments(usable, keys, own, _fields(schemas["chat"]))
    groups = sorted({deployment["model_name"] for deployment in deployments})
    return FrontFiles(
        {
            "model_list": deployments,
            "router_settings": _router(len(usable), redis),
            "litellm_settings": {"drop_params": True, "request_timeout": ANSWER_SECONDS},
            "general_settings": _general(redis),
        },
        {
            "routes": {path: _without(schemas[name]) for name, paths in PATHS.items() for path in paths},
            "groups": groups,
            "names": {name: group for name, group in names.items() if group in groups and name not in groups},
            "keys": ring,
            "master": master,
        },
        {node.address: node.authority for node in usable},
    )


def _deployments(nodes: Sequence[Node], keys: Mapping[str, str], own: str, fields: list[str]) -> list[dict[str, Any]]:
    """Return LiteLLM's deployments; a node's weight in a group is its speed, and the mean of the others' where unknown.

    node_choice.py goes by it where nodes are equally busy.
    """
    offers = [(group, node, served) for node in nodes for group, served in groups_of(node).items()]
    offers.sort(key=lambda offer: (offer[0], offer[1].name))
    speeds = {group: [served.decode_tps for name, _, served in offers if name == group] for group, _, _ in offers}
    deployments = [
        _deployment(group, node, served, keys[node.name], fields, weight(served.decode_tps, speeds[group]))
        for group, node, served in offers
    ]
    had = {group for group, node, _ in offers if group in node.offered}
    for deployment, (group, node, _) in zip(deployments, offers, strict=True):
        if group in had:
            deployment["litellm_params"]["order"] = FIRST if group in node.offered else STANDING_IN
        if node.name == own:
            deployment["litellm_params"]["extra_headers"] = {CHECK: "1"}
    return deployments


def groups_of(node: Node) -> dict[str, ServedModel]:
    """Return what a node is asked for, by group: what it says, and of a gateway the names that each has."""
    offered = node.offered
    if node.kind != "mlxq" or not offered:
        return offered
    default = offered.get("standard") or next(iter(offered.values()))
    everywhere = {
        name: ServedModel(name, default.context, default.slots, default.decode_tps)
        for name in TIERS
        if name not in node.missing
    }
    return everywhere | offered


def weight(speed: float | None, speeds: Sequence[float | None]) -> float:
    """Return how likely a node is asked before another one that is as busy: its speed, in tokens/s.

    `speeds`: of all nodes of the group. One that was not measured counts as their mean.
    """
    measured = [entry for entry in speeds if entry]
    return speed or (sum(measured) / len(measured) if measured else 1.0)


def _deployment(  # noqa: PLR0917 (what a deployment is made of)
    group: str, node: Node, served: ServedModel, key: str, fields: list[str], likely: float
) -> dict[str, Any]:
    info: dict[str, Any] = {"id": f"{group}@{node.name}", "mode": "chat"}
    if served.context:
        info["max_input_tokens"] = served.context
    return {
        "model_name": group,
        "litellm_params": {
            "model": f"openai/{served.model}",
            "api_base": f"{node.address}/v1",
            "api_key": key,
            "use_chat_completions_api": True,
            "allowed_openai_params": fields,
            "timeout": ANSWER_SECONDS,
            "stream_timeout": ANSWER_SECONDS,
            "max_retries": 0,
            "weight": likely,
        },
        "model_info": info,
    }


def settled(proxy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the proxy's configuration that a running one does not read again."""
    router = {name: value for name, value in proxy["router_settings"].items() if name != "num_retries"}
    return {**proxy, "model_list": [], "router_settings": router}


def _router(nodes: int, redis: str) -> dict[str, Any]:
    """Return how the proxy chooses: a request that fails is asked of each other node before it fails for good."""
    settings: dict[str, Any] = {
        "routing_strategy": "simple-shuffle",  # of what node_choice.py leaves
        "num_retries": max(0, nodes - 1),
        "allowed_fails": 0,
        "cooldown_time": COOLDOWN_S,
        "timeout": ANSWER_SECONDS,
        "stream_timeout": ANSWER_SECONDS,
        "optional_pre_call_checks": ["session_affinity"],
        "deployment_affinity_ttl_seconds": PIN_S,
    }
    return settings | ({"redis_url": redis} if redis else {})


def bounded(redis: str) -> str:
    """Return a Redis URL with limits for connecting and for answers, which redis-py reads in it.

    LiteLLM's own settings leave 5 s for a connection, and a host that drops packets takes them all.
    """
    if not redis:
        return ""
    parts = urlsplit(redis)
    limits = {"socket_timeout": f"{REDIS_S}", "socket_connect_timeout": f"{REDIS_S}"}
    return urlunsplit(parts._replace(query=urlencode(limits | dict(parse_qsl(parts.query)))))


def _general(redis: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "custom_auth": "front_plugin.authorize",
        "disable_spend_logs": True,
        "always_include_stream_usage": True,
    }
    return settings | ({"coordination_redis": {"url": redis}} if redis else {})


def _without(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose requests cannot have what LiteLLM would obey."""
    properties = {name: part for name, part in schema["properties"].items() if name not in OBEYED}
    return {**schema, "properties": properties}


def _fields(schema: dict[str, Any]) -> list[str]:
    """Return the fields of a chat that go to a node: LiteLLM drops what it does not know of a model."""
    return sorted(_without(schema)["properties"].keys() - {"model", "messages", "stream"})


def environment(*, base: Mapping[str, str], home: str, generation: int) -> dict[str, str]:
    """Return the whole environment of the front. It holds no secret; `base` is the worker's environment."""
    return kept(base) | marker(home, SERVICE, generation) | quiet() | _DIALECTS | _REDIS


def quiet() -> dict[str, str]:
    """Return the environment in which LiteLLM's proxy asks nothing of the network and shows no pages."""
    return {**LITELLM_QUIET, **_NO_PAGES, "PYTHONUNBUFFERED": "1"}


def argv(python: str, program: str, folder: str, port: int, *, host: str, tls: str | None) -> list[str]:
    """Return the front's command line; it holds no secret. `tls`: the folder of its certificate."""
    encrypted = ["--tls", tls] if tls else []
    return [python, "-P", program, folder, str(port), "--host", host, *encrypted]
