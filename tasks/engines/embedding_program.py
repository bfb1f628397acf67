"""The program of an engine process that makes vectors of texts, or scores documents: one model of mlx-embeddings.

Run as `PYTHON -P embedding_program.py embedding FOLDER --port …`; the key comes by MLXQ_TIER_KEY. Python may be that
of an engine's environment: its libraries are used, and what it lacks comes from where mlxq is.
One thread computes. Requests take turns at it after each forward pass, so that a query does not wait for a batch of
2,048 documents; a client that leaves takes the rest of its batch along.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

sys.path.append(str(Path(__file__).parents[2]))

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tasks.engines.asgi import locked
from tasks.system import own_log

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Encoding

DRAIN_S = 4
"""Seconds a running answer has left after SIGTERM."""
_GONE, _BAD = 499, 400


@dataclass
class WorkCounts:
    """What the process has groups_rows since its start, and does now."""

    passes: int = 0
    running: int = 0
    waiting: int = 0
    requests: int = 0
    tokens: int = 0

    def document(self) -> dict[str, Any]:
        """Return it in the words of vllm-mlx's /v1/status, which tasks/plan/health.py reads."""
        return {
            "status": "running",
            "steps_executed": self.passes,
            "num_running": self.running,
            "num_waiting": self.waiting,
            "total_requests_processed": self.requests,
            "total_prompt_tokens": self.tokens,
        }


class ClientLeft(Exception):
    """The client left."""


@dataclass
class EmbeddingServer:
    """The model, and the one thread that computes: MLX's streams belong to a thread."""

    name: str
    model: Any
    texts: Any
    thread: ThreadPoolExecutor
    pass_tokens: int
    """Padded tokens of one forward pass."""
    work: WorkCounts = field(default_factory=WorkCounts)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """First come, first served: each request has one forward pass, and then the next one."""

    async def run(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], request: Request
    ) -> tuple[np.ndarray[Any, Any], int]:
        """Return the model's rows for these texts in their order, and their tokens. Raises TooLong, ClientLeft."""
        self.work.waiting += 1
        try:
            encodings: list[Encoding] = await self._computed(lambda: self.texts.tokens(texts))
            rows = await self._rows(encodings, request)
        finally:
            self.work.waiting -= 1
        tokens = sum(len(encoding.ids) for encoding in encodings)
        self.work.requests += 1
        self.work.tokens += tokens
        return rows, tokens

    async def _rows(self, encodings: Sequence[Encoding], request: Request) -> np.ndarray[Any, Any]:
        import numpy as np

        from tasks.engines.embedding_model import batches

        groups_rows: list[np.ndarray[Any, Any]] = []
        order: list[int] = []
        for group in batches(encodings, self.pass_tokens):
            if await request.is_disconnected():
                raise ClientLeft
            batch = [encodings[index] for index in group]
            async with self.turn:
                self.work.running = 1
                try:
                    groups_rows.append(await self._computed(lambda batch=batch: self.model.run(batch)))
                finally:
                    self.work.running = 0
            self.work.passes += 1
            order += group
        rows = np.concatenate(groups_rows)
        sorted_back = np.empty_like(rows)
        sorted_back[order] = rows
        return sorted_back

    async def _computed(self, compute: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, compute)

    async def purge(self) -> None:
        """Return MLX's freed buffers back to the system."""
        import mlx.core as mx

        await self._computed(mx.clear_cache)


SHORTEST: Mapping[str, Mapping[str, Any]] = {
    "embedding": {"input": ["Hi"]},
    "rerank": {"query": "Hi", "documents": ["Hello"]},
}
"""What the self-test asks of each kind."""


def application(engine: EmbeddingServer, kind: str) -> Starlette:
    """Return the ASGI application that serves `kind`: embedding or rerank."""

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [{"id": engine.name, "object": "model", "owned_by": "mlxq"}]})

    async def status(_: Request) -> Response:
        return _json(engine.work.document() | _metal())

    async def purge(_: Request) -> Response:
        await engine.purge()
        return _json({"status": "cleared"})

    async def health(_: Request) -> Response:
        return _json({"status": "healthy"})

    async def answer(request: Request) -> Response:
        from tasks.engines.embedding_model import TooLong

        try:
            return _json(await make(engine, orjson.loads(await request.body()), request))
        except TooLong as problem:
            return _json({"error": {"message": str(problem), "code": "input_too_long"}}, _BAD)
        except ClientLeft:
            return Response(status_code=_GONE)

    async def self_test(request: Request) -> Response:
        return _json(await make(engine, orjson.loads(await request.body()) | SHORTEST[kind], request))

    make, route = (embeddings, "/v1/embeddings") if kind == "embedding" else (rerank, "/v1/rerank")
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/status", status),
            Route("/v1/cache", purge, methods=["DELETE"]),
            Route(route, answer, methods=["POST"]),
            Route("/v1/self-test", self_test, methods=["POST"]),
        ]
    )


async def embeddings(engine: EmbeddingServer, body: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Return an answer in the shape of OpenAI's embeddings, for a checked body. Raises TooLong, ClientLeft."""
    from tasks.engines.embedding_model import shortened

    texts: list[str] = body["input"]
    vectors, tokens = await engine.run(texts, request)
    vectors = shortened(vectors, int(body.get("dimensions") or vectors.shape[1]))
    encoded = map(_base64, vectors) if body.get("encoding_format") == "base64" else vectors
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _base64(vector: np.ndarray[Any, Any]) -> str:
    """Return 32-bit floats, little-endian, as OpenAI's client libraries read them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def rerank(engine: EmbeddingServer, body: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Return an answer in the shape of Cohere's and Jina's rerank, the best first. Raises TooLong, ClientLeft."""
    documents: list[str] = body["documents"]
    scores, tokens = await engine.run([(body["query"], document) for document in documents], request)
    best = sorted(range(len(documents)), key=lambda index: -scores[index])[: body.get("top_n") or len(documents)]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": float(scores[index])} for index in best]
    if body.get("return_documents"):
        results = [result | {"document": {"text": documents[result["index"]]}} for result in results]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body["model"], "results": results, "usage": usage}


def _json(document: Any, status: int = 200) -> Response:
    content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, media_type="application/json")


def _metal() -> dict[str, Any]:
    import mlx.core as mx

    return {"metal": {"active_memory_gb": mx.get_active_memory() / 1e9}} if mx.metal.is_available() else {}


def main() -> None:
    """Serve one model until SIGTERM, or until the last answer after SIGUSR2."""
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    own_log.keep_of_service()
    chosen = _arguments()
    key = os.environ.pop("MLXQ_TIER_KEY", "")
    thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
    model, texts = thread.submit(lambda: _load(chosen)).result()
    app = locked(application(EmbeddingServer(chosen.name, model, texts, thread, chosen.pass_tokens), chosen.kind), key)
    server = uvicorn.Server(
        uvicorn.Config(
            cast("Any", app),
            host=chosen.host,
            port=chosen.port,
            timeout_graceful_shutdown=DRAIN_S,
            log_config=None,
            access_log=False,
        )
    )
    signal.signal(signal.SIGUSR2, lambda _number, _frame: drain(server))
    server.run()
    sys.stderr.flush()
    os._exit(0 if server.started else 1)  # an ordered end aborts: MLX's streams outlive the thread that they belong to


def drain(server: uvicorn.Server) -> None:
    """Take no more requests, and end with code 0 after the last answer, however long that takes."""
    server.config.timeout_graceful_shutdown = None
    server.should_exit = True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("embedding", "rerank"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--pooling", choices=("mean", "cls", "last"), default="mean")
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--pass-tokens", type=int, default=4096)
    return parser.parse_args()


def _load(chosen: argparse.Namespace) -> tuple[Any, Any]:
    """Return model and tokenizer; in the thread that computes."""
    import mlx.core as mx

    from tasks.engines.embedding_model import CrossEncoder, Embedder, Texts

    memory_bytes = int(os.environ.get("MLXQ_MEMORY_BYTES", "0"))
    if memory_bytes and mx.metal.is_available():
        mx.set_wired_limit(memory_bytes)
    model = Embedder(chosen.folder, chosen.pooling) if chosen.kind == "embedding" else CrossEncoder(chosen.folder)
    return model, Texts(chosen.folder, chosen.max_length)


if __name__ == "__main__":
    main()
