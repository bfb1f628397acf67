"""Answers what is asked of Ollama's API beside words and vectors: which models there are, and their files.

Rows are read in threads. Files are downloaded and deleted by jobs, as by the commands `pull` and `rm`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from starlette.types import Receive, Scope

from state import job, ledger
from state.db import Database
from state.errors import MlxqError
from state.job import Job
from state.keys import Key
from state.paths import Home
from tasks.gateway import errors
from tasks.gateway.admission import body
from tasks.gateway.admission.body import Gone
from tasks.gateway.dialects import checks
from tasks.gateway.errors import Refusal
from tasks.gateway.ollama import chat, files, models
from tasks.gateway.ollama.fields import OllamaName
from tasks.gateway.reply import Reply
from tasks.gateway.routes import Routes
from tasks.gateway.state_thread import in_thread

PREFIX = "/api/"
_METHODS: Mapping[str, str] = {
    "/api/tags": "GET",
    "/api/ps": "GET",
    "/api/version": "GET",
    "/api/show": "POST",
    "/api/pull": "POST",
    "/api/delete": "DELETE",
}
BODY_BYTES = 1 << 16
LOOK_S = 0.5
"""How often a download's progress is read: a job writes it every 0.4 s at most."""


def serves(path: str) -> bool:
    """Return whether a path is one of these."""
    return path in _METHODS


class OllamaApi:
    """The models of the stack in Ollama's shapes."""

    def __init__(self, home: Home, routes: Routes) -> None:
        self._home = home
        self._routes = routes

    async def serve(self, scope: Scope, receive: Receive, key: Key, reply: Reply) -> None:
        """Answer one request of a key."""
        path, method = scope["path"], scope["method"]
        allowed = _METHODS[path]
        if method not in ({"GET", "HEAD"} if allowed == "GET" else {allowed}):
            message = f"{path} does not take {method}, only {allowed}."
            await reply.refuse(Refusal(405, message, "method_not_allowed", headers={"allow": allowed}))
            return
        try:
            outcome = await self._outcome(path, scope, receive, key, reply)
        except Gone:
            return
        except MlxqError as problem:
            outcome = errors.state_unavailable(problem)
        if isinstance(outcome, Refusal):
            await reply.refuse(outcome)
        elif outcome is not None:
            await reply.whole(orjson.dumps(outcome))

    async def _outcome(
        self, path: str, scope: Scope, receive: Receive, key: Key, reply: Reply
    ) -> dict[str, Any] | Refusal | None:
        """Return a route's answer; None where it is sent already. Raises Gone, MlxqError."""
        match path:
            case "/api/version":
                return {"version": models.API_VERSION}
            case "/api/tags":
                return await in_thread(self._home, lambda db: models.tags(models.served(db, self._routes, key)))
            case "/api/ps":
                return await in_thread(self._home, lambda db: models.running(db, models.served(db, self._routes, key)))
            case _:
                content = await body.read(receive, scope["headers"], BODY_BYTES)
        request = content if isinstance(content, Refusal) else checks.read(OllamaName, content)
        if isinstance(request, Refusal):
            return request
        if path == "/api/show":
            return await in_thread(self._home, lambda db: self._show(db, key, request.wanted))
        return await self._change(path, key, request, reply)

    def _show(self, db: Database, key: Key, name: str) -> dict[str, Any] | Refusal:
        model = models.find(models.served(db, self._routes, key), self._routes, name)
        return files.unknown(name) if model is None else models.show(model)

    async def _change(self, path: str, key: Key, request: OllamaName, reply: Reply) -> dict[str, Any] | Refusal | None:
        """Download or delete a model's files. Raises MlxqError."""
        deletes = path == "/api/delete"
        if refusal := files.not_allowed(key, request.wanted, deletes=deletes):
            return refusal
        new = await in_thread(self._home, lambda db: (files.removal if deletes else files.download)(db, request.wanted))
        if isinstance(new, Refusal):
            return new
        number = await in_thread(self._home, lambda db: ledger.enqueue(db, new)[0])
        if request.stream and not deletes:
            async for line in self._lines(number):
                await reply.write(chat.line(line))
            await reply.end()
            return None
        async for row in self._until_ended(number):
            if not row.live:
                return files.failure(row) or {"status": "success"}
        return None

    async def _lines(self, number: int) -> AsyncGenerator[dict[str, Any]]:
        """Yield what a stream says of a job: each change, and its end. Raises MlxqError."""
        before: dict[str, Any] = {}
        async for row in self._until_ended(number):
            line = files.progress(row) if row.live else files.ending(row)
            if line != before:
                yield line
            before = line

    async def _until_ended(self, number: int) -> AsyncGenerator[Job]:
        """Yield a job again and again until it has ended. A client that leaves ends this, and not the job."""
        while True:
            row = await in_thread(self._home, lambda db: job.get(db, number))
            yield row
            if not row.live:
                return
            await asyncio.sleep(LOOK_S)
