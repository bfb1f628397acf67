"""Embeddings and ranking: what is checked before an engine is asked, and its bytes passed back as they are.

No other engine stands in for such a one: vectors of two models have nothing in common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from state.keys import Key
from tasks.gateway import errors
from tasks.gateway.dialects import schemas
from tasks.gateway.dialects.dialect import EMBEDDINGS, OLLAMA_EMBED, OLLAMA_EMBEDDINGS, RERANK, Dialect
from tasks.gateway.engine_client import EngineClient, EngineDown
from tasks.gateway.errors import Refusal, invalid
from tasks.gateway.ollama import vectors as ollama
from tasks.gateway.reply import Reply
from tasks.gateway.request_context import Call
from tasks.gateway.routes import RetrievalRoute, Route, Routes

EMBEDDING = "embedding"
PURPOSES: Mapping[Dialect, str] = {
    EMBEDDINGS: EMBEDDING,
    RERANK: "rerank",
    OLLAMA_EMBED: EMBEDDING,
    OLLAMA_EMBEDDINGS: EMBEDDING,
}
MOST_INPUTS = 2_048
"""Texts of one request, as OpenAI has it."""
_BAD = 400
_TOKENS = re.compile(rb'"(?:prompt_tokens|total_tokens)":(\d+)')
_TAIL = 200
"""Bytes at the end of an answer that hold its usage."""


def find(
    routes: Routes, dialect: Dialect, model: str, key: Key, sleeping: Callable[[], Sequence[str]] = tuple
) -> RetrievalRoute | Refusal:
    """Return who serves a request, or why none does. `sleeping`: returns the models on this disk that could."""
    purpose = PURPOSES[dialect]
    route = routes.retrieval.get(purpose)
    candidates = sleeping() if route is None or model not in route.names else ()
    if route is None and not candidates:
        kind = "embedding" if purpose == EMBEDDING else "reranking"
        return Refusal(404, f"No {kind} model is set up in this stack.", f"no_{kind}_model", "model")
    if route is None or model not in route.names:
        ability = "make embeddings" if purpose == EMBEDDING else "rank documents"
        names = " or ".join(map(repr, [*([purpose] if route else []), *candidates]))
        message = f"{model[:100]!r} does not {ability} here; ask for {names}."
        return Refusal(404, message, "model_not_found", "model")
    if not key.may_ask(purpose):
        return errors.not_allowed(key.name, purpose)
    return route


def no_chat(purpose: str, model: str) -> Refusal:
    """Return the refusal of a chat with a model that does something else."""
    ability, path = ("makes embeddings", EMBEDDINGS.path) if purpose == EMBEDDING else ("ranks documents", RERANK.path)
    return Refusal(404, f"{model[:100]!r} {ability} and does not chat; ask {path} for it.", "no_chat_model", "model")


def read(call: Call, dialect: Dialect, request: schemas.Fields, route: RetrievalRoute) -> RetrievalRequest | Refusal:
    """Return what the engine is asked, or what is wrong with the request."""
    fields = request.model_dump(by_alias=True, exclude_unset=True, exclude_none=True, exclude={"keep_alive", "ttl"})
    if dialect is RERANK:
        body = _rerank(fields)
    else:
        body = _embeddings(ollama.to_embeddings(fields) if dialect.ollama else fields, route)
    if isinstance(body, Refusal):
        return body
    path = RERANK.path if dialect is RERANK else EMBEDDINGS.path
    written = ollama.embed if dialect is OLLAMA_EMBED else ollama.embeddings if dialect is OLLAMA_EMBEDDINGS else None
    return RetrievalRequest(call, path, body, route.route, written)


def _embeddings(fields: dict[str, Any], route: RetrievalRoute) -> dict[str, Any] | Refusal:
    texts = [fields["input"]] if isinstance(fields["input"], str) else fields["input"]
    if not texts:
        return invalid("`input` must not be empty.", "input")
    if len(texts) > MOST_INPUTS:
        return invalid(f"`input` may hold at most {MOST_INPUTS:,} texts, and this one holds {len(texts):,}.", "input")
    if any(not isinstance(text, str) for text in texts):
        message = (
            "`input` must be a text or a list of texts: token numbers mean other words to this model than to OpenAI's."
        )
        return invalid(message, "input")
    if not all(texts):
        return invalid(f"`input[{texts.index('')}]` must not be empty.", "input")
    wanted = fields.get("dimensions")
    if wanted and wanted != route.dimensions and (not route.shortens or wanted > route.dimensions):
        allowed = f"1 to {route.dimensions}" if route.shortens else f"{route.dimensions} alone"
        return invalid(f"`dimensions` of this model may be {allowed}, not {wanted}.", "dimensions")
    return {**fields, "input": texts}


def _rerank(fields: dict[str, Any]) -> dict[str, Any] | Refusal:
    documents: list[Any] = fields["documents"]
    if not documents or len(documents) > MOST_INPUTS:
        return invalid(f"`documents` must hold 1 to {MOST_INPUTS:,} texts, not {len(documents):,}.", "documents")
    texts = [_text(document) for document in documents]
    if any(text is None for text in texts):
        return invalid("`documents` must hold texts, or objects with a `text`.", "documents")
    return {**fields, "documents": texts}


def _text(document: Any) -> str | None:
    """Return a document's text: Cohere and Jina take it alone, or as an object's `text`."""
    if isinstance(document, dict):
        document = cast("dict[str, Any]", document).get("text")
    return document if isinstance(document, str) else None


@dataclass(frozen=True)
class RetrievalRequest:
    """One checked request."""

    call: Call
    path: str
    """Of the engine's route."""
    body: dict[str, Any]
    route: Route
    written: Callable[[Mapping[str, Any], Call], dict[str, Any]] | None = None
    """Writes the engine's answer in another dialect; None where its bytes pass as they are."""


async def serve(request: RetrievalRequest, client: EngineClient, reply: Reply) -> Refusal | None:
    """Have the engine answer, and pass its bytes on; return why it did not, with nothing sent yet."""
    call, purpose = request.call, request.route.name
    call.tried.append(purpose)
    try:
        answer = await client.post(request.route, request.path, orjson.dumps(request.body), stream=False)
        try:
            content = await answer.read()
        finally:
            answer.close()
    except EngineDown as problem:
        call.failures[purpose] = str(problem)
        return errors.unavailable(call.failures)
    if answer.status >= _BAD:
        return _refusal(purpose, answer.status, content)
    call.heard()
    usage = _TOKENS.search(content[-_TAIL:])
    call.prompt_tokens = int(usage[1]) if usage else 0
    await reply.whole(orjson.dumps(request.written(orjson.loads(content), call)) if request.written else content)
    return None


def _refusal(purpose: str, status: int, content: bytes) -> Refusal:
    """Return the refusal of a text that is too long in the engine's words, which are mlxq's; of all else in others."""
    try:
        error: dict[str, Any] = orjson.loads(content)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return errors.refused_by_engine(purpose, status)
    if error.get("code") == "input_too_long":
        return invalid(str(error["message"]), "input", "input_too_long")
    return errors.refused_by_engine(purpose, status)
