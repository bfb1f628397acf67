"""Answers what is asked of files and batches. Rows are read and written in threads; nothing here answers a line.

What belongs to another key is answered as what does not exist: 404.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

import orjson
from starlette.types import Receive, Scope

from catalog import units
from state.batches import stored_files
from state.batches.stored_files import RESERVE_BYTES, Upload
from state.db import Database
from state.errors import MlxqError, UsageProblem
from state.paths import Home
from tasks.gateway import errors
from tasks.gateway.admission import body
from tasks.gateway.admission.body import Gone
from tasks.gateway.batches import anthropic_routes, openai_routes, requests, shapes, uploads
from tasks.gateway.batches.calls import BatchCall, Outcome, unknown
from tasks.gateway.batches.requests import NewBatch, NewMessageBatch
from tasks.gateway.dialects import checks
from tasks.gateway.errors import Refusal, invalid
from tasks.gateway.reply import Reply
from tasks.gateway.state_thread import in_thread

PIECE_BYTES = 1 << 18
NEW_BATCH_BYTES = 1 << 20
_ID = r"(?P<id>[A-Za-z0-9_-]{1,64})"
_FILE, _BATCH, _MESSAGES = rf"(?:/v1)?/files/{_ID}", rf"(?:/v1)?/batches/{_ID}", rf"/v1/messages/batches/{_ID}"
_ROUTES: Mapping[str, tuple[str, str]] = {
    "upload": ("POST", r"(?:/v1)?/files"),
    "files": ("GET", r"(?:/v1)?/files"),
    "file": ("GET", _FILE),
    "content": ("GET", rf"{_FILE}/content"),
    "delete_file": ("DELETE", _FILE),
    "create": ("POST", r"(?:/v1)?/batches"),
    "batches": ("GET", r"(?:/v1)?/batches"),
    "batch": ("GET", _BATCH),
    "cancel": ("POST", rf"{_BATCH}/cancel"),
    "create_messages": ("POST", r"/v1/messages/batches"),
    "message_batches": ("GET", r"/v1/messages/batches"),
    "message_batch": ("GET", _MESSAGES),
    "cancel_messages": ("POST", rf"{_MESSAGES}/cancel"),
    "results": ("GET", rf"{_MESSAGES}/results"),
    "delete_messages": ("DELETE", _MESSAGES),
}
"""Name -> method and path."""
_PATHS = re.compile(r"(?:/v1)?/(?:files|batches)(?:/.*)?|/v1/messages/batches(?:/.*)?")


def serves(path: str) -> bool:
    """Return whether a path is one of files or batches."""
    return bool(_PATHS.fullmatch(path))


class BatchApi:
    """Files and batches of all keys."""

    def __init__(self, home: Home, body_limit: int) -> None:
        """`body_limit`: bytes of a message batch, whose requests come inline."""
        self._home = home
        self._limit = body_limit

    async def serve(self, scope: Scope, receive: Receive, owner: str, reply: Reply) -> None:
        """Answer one request of the key named `owner`."""
        route = _route(scope["method"], scope["path"])
        if isinstance(route, Refusal):
            await reply.refuse(route)
            return
        name, file_id = route
        try:
            outcome = await self._outcome(name, BatchCall(scope, receive, owner, file_id))
        except Gone:
            return
        except MlxqError as problem:
            outcome = errors.state_unavailable(problem)
        if isinstance(outcome, Refusal):
            await reply.refuse(outcome)
        elif isinstance(outcome, Path):
            await _send(reply, outcome)
        else:
            await reply.whole(orjson.dumps(outcome))

    async def _outcome(self, name: str, call: BatchCall) -> Outcome:
        """Have a route's answer. Raises Gone, MlxqError."""
        match name:
            case "upload":
                return await self._upload(call)
            case "create":
                return await self._create(call)
            case "create_messages":
                return await self._create_messages(call)
            case _:
                return await in_thread(self._home, lambda db: _PLAIN[name](db, call))

    async def _upload(self, call: BatchCall) -> Outcome:
        """Store a file. Raises Gone, MlxqError."""
        announced = dict(call.scope["headers"]).get(b"content-length", b"0")
        if refusal := _no_room(self._home, int(announced) if announced.isdigit() else 0):
            return refusal
        try:
            upload = Upload(self._home)
            try:
                form = await uploads.read(call.receive, call.scope["headers"], upload)
                return form if isinstance(form, Refusal) else await self._finish(call.owner, upload, form)
            finally:
                upload.discard()
        except UsageProblem as problem:
            return Refusal(413, problem.message, "file_too_large", "file")
        except OSError as problem:
            return Refusal(507, f"The file cannot be stored: {problem.strerror}.", "insufficient_storage")

    async def _finish(self, owner: str, upload: Upload, form: uploads.FormUpload) -> Outcome:
        purpose, filename = form.fields.get("purpose"), form.filename
        if filename is None:
            return invalid("The form has no part named `file`.", "file", "missing_required_parameter")
        if purpose != "batch":
            return invalid("`purpose` must be batch.", "purpose")
        expiry = requests.expires_in_s(form.fields, stored_files.KEEP_S)
        if isinstance(expiry, Refusal):
            return expiry
        file = await in_thread(self._home, lambda db: upload.finish(db, owner, filename, expiry))
        return shapes.file_object(file)

    async def _create(self, call: BatchCall) -> Outcome:
        content = await body.read(call.receive, call.scope["headers"], NEW_BATCH_BYTES)
        wanted = content if isinstance(content, Refusal) else checks.read(NewBatch, content)
        if isinstance(wanted, Refusal):
            return wanted
        return await in_thread(self._home, lambda db: openai_routes.create(db, call.owner, wanted))

    async def _create_messages(self, call: BatchCall) -> Outcome:
        content = await body.read(call.receive, call.scope["headers"], self._limit)
        if isinstance(content, Refusal):
            return content
        wanted = await asyncio.to_thread(checks.read, NewMessageBatch, content)
        if isinstance(wanted, Refusal):
            return wanted
        del content
        return await in_thread(self._home, lambda db: anthropic_routes.create(db, call, wanted))


def _route(method: str, path: str) -> tuple[str, str] | Refusal:
    """Return the route of a request, and the id in it."""
    allowed: list[str] = []
    for name, (wanted, pattern) in _ROUTES.items():
        if match := re.fullmatch(pattern, path):
            if method in ({"GET", "HEAD"} if wanted == "GET" else {wanted}):
                return name, match.groupdict().get("id", "")
            allowed.append(wanted)
    if not allowed:
        return Refusal(404, f"There is nothing at {method} {path[:100]}.", "unknown_route")
    message = f"{path[:100]} does not take {method}, only {units.listed(sorted(allowed))}."
    return Refusal(405, message, "method_not_allowed", headers={"allow": ", ".join(sorted(allowed))})


def _no_room(home: Home, size: int) -> Refusal | None:
    free = shutil.disk_usage(home.root).free
    if free - size > RESERVE_BYTES:
        return None
    message = f"The disk has {free / 1e9:.1f} GB left; an upload leaves {RESERVE_BYTES / 1e9:.0f} GB free."
    return Refusal(507, message, "insufficient_storage")


async def _send(reply: Reply, path: Path) -> None:
    """Send a file in pieces; one that was deleted meanwhile is not there."""
    try:
        file = path.open("rb")
    except OSError:
        await reply.refuse(unknown("file", path.name))
        return
    with file:
        size = os.fstat(file.fileno()).st_size

        async def pieces() -> AsyncGenerator[bytes]:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece

        await reply.pieces(pieces(), size, "application/x-jsonlines")


_PLAIN: Mapping[str, Callable[[Database, BatchCall], Outcome]] = {
    "files": openai_routes.list_files,
    "file": openai_routes.show_file,
    "content": openai_routes.file_content,
    "delete_file": openai_routes.delete_file,
    "batches": openai_routes.list_batches,
    "batch": openai_routes.show_batch,
    "cancel": openai_routes.cancel,
    "message_batches": anthropic_routes.list_batches,
    "message_batch": anthropic_routes.show,
    "cancel_messages": anthropic_routes.cancel,
    "results": anthropic_routes.results,
    "delete_messages": anthropic_routes.delete,
}
"""The routes that read a row or two and no body."""
