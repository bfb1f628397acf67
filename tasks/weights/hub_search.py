"""What the Hub has for MLX, a page at a time. httpx is heavy; only a command that asks for this loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from catalog import config_json
from catalog.description.purpose import other_purpose
from state.errors import Offline
from tasks.weights import loaders
from tasks.weights.hub import CONNECT_S, unreachable, web_page

ANSWER_S = 20.0
KINDS = {
    "text-generation": "chat",
    "image-text-to-text": "chat",
    "any-to-any": "chat",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "text-ranking": "rerank",
}
"""The Hub's tasks (huggingface.co/tasks) -> what mlxq calls them."""
FIELDS = ("downloads", "likes", "lastModified", "gated", "safetensors", "config", "pipeline_tag")
VALUE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
"""Bytes of a value by its type, as the Hub counts values; all other types have one."""


@dataclass(frozen=True)
class Repo:
    """One repo."""

    name: str
    downloads: int
    """In the last 30 days."""
    likes: int
    updated: str
    """The date of the last change."""
    gated: bool
    weights_bytes: int | None = None
    """Size of the weights, by the Hub's count of their values; None where it has none."""
    kind: str = "chat"
    """What it is for: chat, embedding, rerank, or the Hub's own word for another task."""
    purpose: str | None = None
    """What the model does other than answering, or why it cannot be served; None for one that may be a tier."""


@dataclass(frozen=True)
class ResultPage:
    """Some repos, and whether there are more."""

    repos: tuple[Repo, ...]
    more: bool


def page(number: int, size: int, *, search: str | None, author: str | None, tag: str | None) -> ResultPage:
    """Return one page of the Hub's MLX models, the most downloaded first.

    The Hub pages by cursors, so page N takes N requests. Raises Offline.
    """
    import httpx
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise Offline("HF_HUB_OFFLINE is set, so the Hub is not asked.", hint="mlxq models --catalog")
    endpoint, token = constants.ENDPOINT.rstrip("/"), get_token()
    headers = {"user-agent": "mlxq"} | ({"authorization": f"Bearer {token}"} if token else {})
    wanted = {"filter": ["mlx", *([tag] if tag else [])], "sort": "downloads", "limit": size, "expand[]": list(FIELDS)}
    query = wanted | {name: value for name, value in (("search", search), ("author", author)) if value}
    url = httpx.URL(f"{endpoint}/api/models", params=query)
    try:
        with httpx.Client(timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), headers=headers) as client:
            answer = _good(client.get(url), endpoint)
            for _ in range(number - 1):
                following = answer.links.get("next", {}).get("url")
                if following is None:
                    return ResultPage((), more=False)
                answer = _good(client.get(_same_host(url.join(following), url)), endpoint)
    except httpx.TransportError as problem:
        raise unreachable(endpoint, problem) from problem
    return ResultPage(tuple(map(_repo, _rows(answer, endpoint))), more="next" in answer.links)


def _same_host(following: Any, first: Any) -> Any:
    """Keep to the endpoint: a link to elsewhere must not get the token."""
    return first.copy_with(raw_path=following.raw_path)


def _good(answer: Any, endpoint: str) -> Any:
    if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        raise Offline(f"{endpoint} is rate limiting requests.", hint="Try again in a minute.")
    if not answer.is_success:
        raise Offline(f"{endpoint} answered {answer.status_code} when asked for models.", hint="Check HF_ENDPOINT.")
    return answer


def _rows(answer: Any, endpoint: str) -> list[Mapping[str, Any]]:
    try:
        document = answer.json()
    except ValueError as problem:
        raise web_page(endpoint) from problem
    if not isinstance(document, list):
        raise web_page(endpoint)
    return [cast("Mapping[str, Any]", row) for row in cast("list[Any]", document) if isinstance(row, dict)]


def _repo(row: Mapping[str, Any]) -> Repo:
    """Read one row; what a mirror leaves out counts as nothing."""
    return Repo(
        name=str(row.get("id", "")),
        downloads=int(row.get("downloads") or 0),
        likes=int(row.get("likes") or 0),
        updated=str(row.get("lastModified") or "")[:10],
        gated=bool(row.get("gated")),
        weights_bytes=_weights_bytes(config_json.mapping(row.get("safetensors"))),
        kind=_kind(config_json.string(row.get("pipeline_tag"))),
        purpose=_purpose(config_json.mapping(row.get("config")), config_json.string(row.get("pipeline_tag"))) or None,
    )


def _kind(task: str) -> str:
    """Return what a repo is for, by the Hub's word for its task; many conversions have none, and are for chats."""
    return KINDS.get(task, task or "chat")


def _weights_bytes(counts: Mapping[str, Any]) -> int | None:
    """Return the bytes of the values that the Hub counts by type."""
    by_type = config_json.mapping(counts.get("parameters"))
    size = sum(VALUE_BYTES.get(kind, 1) * config_json.count(number) for kind, number in by_type.items())
    return size or None


def _purpose(config: Mapping[str, Any], task: str) -> str:
    """Return why a repo cannot be a tier, by the part of its config.json that the Hub lists; empty where it may be."""
    if other := other_purpose(config, (), task):
        return other
    kind = config_json.string(config.get("model_type"))
    loadable = not kind or any(loader.source(kind) for loader in loaders.loaders())
    return "" if loadable else f"has the architecture {kind}, which no loader here knows"
