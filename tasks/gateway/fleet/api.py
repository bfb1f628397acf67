"""The routes under /fleet/v1: who may ask which, and what is answered.

Each kind of key opens its own routes and no other. Without a key there are two: the authority's certificate, which is
public, and joining, which takes an invitation's secret. Rows are read and written in threads.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from starlette.types import Receive, Scope

from state import fleet, ledger
from state.db import Database
from state.errors import InvitationRefused, MlxqError, NotFound, StateUnavailable
from state.keys import Key, KeyKind
from state.paths import Home
from tasks.fleet import inviting, joining, machine, node_jobs, token
from tasks.fleet.identity import FLEET_KEY, MEMBER_KEY
from tasks.fleet.node_client import IDEMPOTENCY_KEY, SIGNATURE, sign
from tasks.gateway import errors
from tasks.gateway.admission import body
from tasks.gateway.admission.api_keys import secret_of
from tasks.gateway.admission.body import Gone
from tasks.gateway.errors import Refusal
from tasks.gateway.reply import Reply
from tasks.gateway.state_thread import in_thread
from tasks.system import certificates

PREFIX = "/fleet/"
AUTHORITY, JOIN, STATUS, JOBS = "/fleet/v1/authority", "/fleet/v1/join", "/fleet/v1/status", "/fleet/v1/jobs"
LEAVE, MEMBER, MACHINE = "/fleet/v1/leave", "/fleet/v1/member", "/fleet/v1/machine"
WITHOUT_KEY: Mapping[str, str] = {AUTHORITY: "GET", JOIN: "POST"}
ROUTES: Mapping[tuple[str, str], KeyKind] = {
    ("GET", STATUS): "fleet",
    ("GET", MACHINE): "fleet",
    ("GET", JOBS): "fleet",
    ("POST", JOBS): "fleet",
    ("POST", LEAVE): "fleet",
    ("GET", MEMBER): "member",
    ("PUT", MEMBER): "member",
    ("DELETE", MEMBER): "member",
}
"""Method and path -> the kind of key that opens it; of one job, the path is that of all."""
_JOB = re.compile(rf"{JOBS}/(?P<number>[0-9]{{1,18}})(?P<cancel>/cancel)?")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")
BODY_BYTES = 1 << 15
MOST_WRONG, WRONG_S = 10, 60.0
"""An address with this many wrong invitations within WRONG_S seconds is refused until they have passed."""
MOST_ADDRESSES = 1_000
"""Addresses of which wrong invitations are remembered."""

Status = Callable[[Database], Mapping[str, Any]]


def serves(path: str) -> bool:
    """Return whether a path is one of the fleet's."""
    return path.startswith(PREFIX)


class FleetApi:
    """Answers nodes of the fleet."""

    def __init__(self, home: Home, status: Status, version: str) -> None:
        """`status`: returns how this node is, as JSON has it."""
        self._home = home
        self._status = status
        self._version = version
        self._attempts = Attempts()

    async def serve(self, scope: Scope, receive: Receive, key: Key | None, reply: Reply) -> None:
        """Answer one request; `key`: what opens the gateway, None where none was shown that does."""
        try:
            outcome = await self._outcome(scope, receive, key)
        except Gone:
            return
        except StateUnavailable as problem:
            outcome = errors.state_unavailable(problem)
        except MlxqError as problem:
            outcome = _refusal(problem)
        if isinstance(outcome, Refusal):
            await reply.refuse(outcome)
        elif isinstance(outcome, bytes):
            await reply.whole(outcome, kind="application/x-pem-file")
        else:
            await reply.whole(orjson.dumps(dict(outcome)))

    async def _outcome(self, scope: Scope, receive: Receive, key: Key | None) -> Mapping[str, Any] | bytes | Refusal:
        """Return the answer. Raises Gone, MlxqError."""
        path, method = scope["path"], scope["method"]
        if scope["scheme"] != "https":
            return Refusal(404, "Nodes of a fleet are answered over TLS alone.", "unknown_route")
        if WITHOUT_KEY.get(path) == method:
            return await (self._authority() if path == AUTHORITY else self._join(scope, receive))
        if key is None:
            return Refusal(401, "The key is not valid, or was revoked.", "invalid_api_key")
        job = _JOB.fullmatch(path)
        refusal = _refused(key, method, JOBS if job and (method == "POST") == bool(job["cancel"]) else path)
        if refusal or job is None:
            return refusal or await self._routed(scope, receive, key)
        return await self._job(key, int(job["number"]), cancels=bool(job["cancel"]))

    async def _routed(self, scope: Scope, receive: Receive, key: Key) -> Mapping[str, Any] | Refusal:
        """Answer a route that the key opens."""
        return await (self._member if scope["path"] == MEMBER else self._fleet)(scope, receive, key)

    async def _authority(self) -> bytes | Refusal:
        """Return the certificate by which this node is known: any handshake shows it."""
        try:
            return await asyncio.to_thread(certificates.authority_file(self._home.tls).read_bytes)
        except OSError:
            return Refusal(404, "This gateway has no certificate.", "unknown_route")

    async def _join(self, scope: Scope, receive: Receive) -> Mapping[str, Any] | Refusal:
        """Take a node that comes with an invitation."""
        host = str((scope.get("client") or ("",))[0])
        if wait := self._attempts.wait_s(host):
            message = "Too many wrong invitations came from this address."
            return Refusal(429, message, "rate_limit_exceeded", headers={"retry-after": str(int(wait) + 1)})
        request = await _document(scope, receive)
        if isinstance(request, Refusal):
            return request
        try:
            return await in_thread(self._home, lambda db: inviting.admit_or_check(db, request, self._version))
        except InvitationRefused:
            self._attempts.wrong(host)
            raise

    async def _fleet(self, scope: Scope, receive: Receive, key: Key) -> Mapping[str, Any] | Refusal:
        """Answer the node that invited this one."""
        path, method = scope["path"], scope["method"]
        if path == STATUS:
            return await in_thread(self._home, self._status)
        if path == MACHINE:
            return await in_thread(self._home, machine.describe)
        if path == LEAVE:
            name = key.name.removeprefix(FLEET_KEY)
            return {"left": await in_thread(self._home, lambda db: joining.forget(db, name))}
        if method == "GET":
            jobs = await in_thread(self._home, lambda db: node_jobs.listing(db, key.name))
            return {"jobs": [node_jobs.document(job) for job in jobs]}
        return await self._enqueue(scope, receive, key)

    async def _enqueue(self, scope: Scope, receive: Receive, key: Key) -> Mapping[str, Any] | Refusal:
        """Enqueue jobs of the allow-list for a request that is signed with the key."""
        content = await body.read(receive, scope["headers"], BODY_BYTES)
        if isinstance(content, Refusal):
            return content
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        idempotency_key = headers.get(IDEMPOTENCY_KEY, "")
        if not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            return Refusal(400, "A request for jobs needs an Idempotency-Key.", "usage")
        signature = sign(secret_of(scope["headers"]) or "", idempotency_key, content)
        if not hmac.compare_digest(signature.encode(), headers.get(SIGNATURE, "").encode("latin-1")):
            return Refusal(401, "The request is not signed with its key.", "invalid_signature")
        request = _parsed(content)
        if isinstance(request, Refusal):
            return request
        command, args = request.get("command"), request.get("args")
        if not isinstance(command, str) or not isinstance(args, dict):
            return Refusal(400, "A request for jobs has `command` and `args`.", "usage")
        wanted = cast("dict[str, Any]", args)
        numbers = await in_thread(
            self._home, lambda db: node_jobs.enqueue(db, key.name, idempotency_key, command, wanted)
        )
        return {"jobs": numbers}

    async def _job(self, key: Key, number: int, *, cancels: bool) -> Mapping[str, Any]:
        """Return a job that the key asked for, with what came of it, after it was cancelled if that is asked."""

        def work(db: Database) -> dict[str, Any]:
            if cancels:
                node_jobs.find(db, key.name, number)
                ledger.cancel(db, number)
            return {"jobs": [node_jobs.document(job) for job in node_jobs.find(db, key.name, number)]}

        return await in_thread(self._home, work)

    async def _member(self, scope: Scope, receive: Receive, key: Key) -> Mapping[str, Any] | Refusal:
        """Answer a node that joined this one's fleet, about itself alone."""
        name, method = key.name.removeprefix(MEMBER_KEY), scope["method"]
        if method == "DELETE":
            return {"left": await in_thread(self._home, lambda db: inviting.forget(db, name))}
        if method == "PUT":
            request = await _document(scope, receive)
            if isinstance(request, Refusal):
                return request
            try:
                addresses = token.addresses(request.get("addresses") or ())
            except (ValueError, TypeError):
                return Refusal(400, "These are no addresses of a node.", "usage")
            await in_thread(self._home, lambda db: fleet.change(db, name, addresses=addresses))
        return await in_thread(self._home, lambda db: _membership(db, name))


def _refused(key: Key, method: str, path: str) -> Refusal | None:
    """Return the refusal of a path that is no route, or that this kind of key does not open."""
    kind = ROUTES.get((method, path))
    if kind is None:
        return Refusal(404, f"There is nothing at {method} {path[:100]}.", "unknown_route")
    return None if key.kind == kind else Refusal(403, f"The key {key.name} does not open {path}.", "not_allowed")


def _membership(db: Database, name: str) -> dict[str, Any]:
    """Return how the fleet sees a member. Raises NotFound."""
    node = fleet.find(db, name)
    if node is None:
        raise NotFound(f"There is no node {name} in this fleet.")
    return {"name": name, "state": node.state, "seen_at": node.seen_at, "problem": node.problem}


async def _document(scope: Scope, receive: Receive) -> dict[str, Any] | Refusal:
    content = await body.read(receive, scope["headers"], BODY_BYTES)
    return content if isinstance(content, Refusal) else _parsed(content)


def _parsed(content: bytes) -> dict[str, Any] | Refusal:
    try:
        document: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        return Refusal(400, "The body is no JSON object.", "usage")
    return cast("dict[str, Any]", document)


STATUS_OF = {
    "not_found": 404,
    "invitation_refused": 403,
    "usage": 400,
    "busy": 409,
    "not_running": 409,
    "not_set_up": 409,
}
"""The code of an error -> HTTP's status."""


@dataclass(frozen=True)
class ErrorRefusal(Refusal):
    """An error as another node gets it, which shows it in these words."""

    done: str | None = None
    hint: str | None = None

    def payload(self, *, anthropic: bool) -> dict[str, Any]:
        """Return the body."""
        payload = super().payload(anthropic=anthropic)
        return {**payload, "error": payload["error"] | {"done": self.done, "hint": self.hint}}


def _refusal(problem: MlxqError) -> Refusal:
    status = STATUS_OF.get(problem.code, 409)
    return ErrorRefusal(status, problem.message, problem.code, done=problem.done, hint=problem.hint)


class Attempts:
    """Counts wrong invitations by the address that they come from."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, host: str) -> float:
        """Return how many seconds an address has to wait; 0 where it need not."""
        times = self._times.get(host)
        if times is None:
            return 0.0
        while times and times[0] <= self._clock() - WRONG_S:
            times.popleft()
        return times[0] + WRONG_S - self._clock() if len(times) >= MOST_WRONG else 0.0

    def wrong(self, host: str) -> None:
        """Count one."""
        if host not in self._times and len(self._times) >= MOST_ADDRESSES:
            del self._times[next(iter(self._times))]
        self._times.setdefault(host, deque()).append(self._clock())
