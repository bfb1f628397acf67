"""Ask one node: its state, its models, jobs. Over pinned TLS, with the key that it gave to this node alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, cast

import httpx

from state import fleet
from state.errors import MlxqError, Offline, UsageProblem, rebuild
from state.fleet import Node
from state.paths import Home
from tasks.fleet import trust
from tasks.plan import fleet as plan
from tasks.plan.fleet import Failure, Look, NodeStatus

FORBIDDEN, UNAUTHORIZED, MISSING, OK = 403, 401, 404, 200
SIGNATURE, IDEMPOTENCY_KEY = "x-mlxq-signature", "idempotency-key"
PROBE_TOKENS = 1


class NodeFailure(Exception):
    """A node could not be asked."""

    def __init__(self, failure: Failure, cause: str) -> None:
        super().__init__(cause)
        self.failure: Failure = failure
        self.words = cause


def sign(key: str, idempotency_key: str, body: bytes) -> str:
    """Return what binds a request for jobs to its key: HMAC-SHA256 of the idempotency key and the body, in hex."""
    return hmac.new(key.encode(), idempotency_key.encode() + b"\n" + body, hashlib.sha256).hexdigest()


class NodeClient(AbstractContextManager["NodeClient"]):
    """Connections to one node."""

    def __init__(self, node: Node, key: str) -> None:
        """Take what opens the node. Raises Damaged where its authority is no certificate."""
        self.node = node
        self.refused = False
        """Whether the node's last answer was that the key opens nothing there."""
        self._key = key
        self._client = trust.client(trust.pinned(node.authority), key) if node.kind == "mlxq" else _unpinned(key)

    @classmethod
    def of(cls, home: Home, node: Node) -> NodeClient:
        """Return the client of a node by its stored key. Raises Damaged, MlxqError."""
        return cls(node, fleet.key(home, node.name))

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._client.close()

    close = __exit__

    @property
    def _addresses(self) -> list[str]:
        """Where the node may be, where it was last first."""
        return list(dict.fromkeys([self.node.address, *self.node.addresses]))

    def look(self, *, lists: bool = False) -> Look:
        """Return how the node is, at the first of its addresses that answers. `lists`: also ask for its models."""
        failed = Look(self.node.address, failure="away", words="no address is known")
        for address in self._addresses:
            try:
                if self.node.kind == "openai":
                    status = self._openai_status(address)
                    return Look(address, status, listed=frozenset(status.serves) if lists else None)
                status = plan.read_status(self._json("GET", f"{address}/fleet/v1/status"))
                listed = frozenset(self._models(address)) if lists else None
                return Look(address, status, listed=listed)
            except NodeFailure as problem:
                failed = Look(address, failure=problem.failure, words=problem.words)
            except ValueError as problem:
                failed = Look(address, failure="not_fleet", words=f"what it answers is no status: {problem}")
        return failed

    def serves(self, name: str) -> bool:
        """Return whether the node has a model, by asking for one token of it. Raises NodeFailure."""
        return self._asked_for(name).status_code != MISSING

    def answers(self, name: str) -> bool:
        """Return whether the node answers with one token of a model. Raises NodeFailure."""
        return self._asked_for(name).status_code == OK

    def _asked_for(self, name: str) -> httpx.Response:
        served = self.node.serves.get(name)
        body = {
            "model": served.model if served else name,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": PROBE_TOKENS,
        }
        return self._at_any_address("POST", "/v1/chat/completions", json.dumps(body).encode())

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer of the node's fleet route. Raises the error that the node answers, Offline."""
        content = b"" if body is None else json.dumps(dict(body)).encode()
        return self._asked(method, path, content, {})

    def post_jobs(self, command: str, args: Mapping[str, Any], idempotency_key: str = "") -> list[int]:
        """Have the node enqueue jobs, and return their numbers there. Asked again where no answer came: never twice.

        `idempotency_key`: 16 to 64 letters and digits, the same for the same request; a new one where it is empty.
        Raises the error that the node answers, Offline.
        """
        idempotency_key = idempotency_key or secrets.token_urlsafe(24)
        content = json.dumps({"command": command, "args": dict(args)}).encode()
        headers = {IDEMPOTENCY_KEY: idempotency_key, SIGNATURE: sign(self._key, idempotency_key, content)}
        try:
            answer = self._asked("POST", "/fleet/v1/jobs", content, headers)
        except Offline:
            answer = self._asked("POST", "/fleet/v1/jobs", content, headers)
        return [number for number in _list(answer.get("jobs")) if isinstance(number, int)]

    def _asked(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        name = self.node.name
        try:
            response = self._at_any_address(method, path, content, headers)
        except NodeFailure as failure:
            raise Offline(f"The node {name} cannot be asked: {failure.words}.", hint="mlxq node list") from failure
        self.refused = response.status_code == UNAUTHORIZED
        return _answer(name, response)

    def _at_any_address(
        self, method: str, path: str, content: bytes, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Return the response at the first of the node's addresses that gives one. Raises the last NodeFailure."""
        failed = NodeFailure("away", "no address is known")
        for address in self._addresses:
            try:
                return self._response(method, f"{address}{path}", content, headers)
            except NodeFailure as failure:
                failed = failure
        raise failed

    def _openai_status(self, address: str) -> NodeStatus:
        """Return what a server of OpenAI's API serves: the models that it lists. Raises NodeFailure, ValueError."""
        served = {name: plan.openai_model(name, row) for name, row in self._models(address).items()}
        return NodeStatus(self.node.name, "", serves=plan.with_groups(self.node.serves, served))

    def _models(self, address: str) -> dict[str, Any]:
        """Return the entries of a list of models by their ids. Raises NodeFailure, ValueError."""
        document = self._json("GET", f"{address}/v1/models")
        rows = [cast("dict[str, Any]", row) for row in _list(document.get("data")) if isinstance(row, dict)]
        return {str(row["id"]): row for row in rows if "id" in row}

    def _json(self, method: str, url: str) -> dict[str, Any]:
        response = self._response(method, url)
        if response.status_code in {UNAUTHORIZED, FORBIDDEN}:
            raise NodeFailure("refused", "it refuses this node's key: it left the fleet, or has another key")
        if response.status_code != OK:
            raise NodeFailure("not_fleet", f"it answers HTTP {response.status_code}")
        document: Any = json.loads(response.content)
        if not isinstance(document, dict):
            raise ValueError("no object")  # noqa: TRY004 (one kind of error for what another machine sends)
        return cast("dict[str, Any]", document)

    def _response(
        self, method: str, url: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        typed = {"content-type": "application/json", **(headers or {})}
        try:
            return trust.read(self._client, method, url, content, **typed)
        except httpx.HTTPError as problem:
            if trust.is_other_authority(problem):
                words = f"another machine answers at {_place(url)}, or a clock is wrong: {trust.reason(problem)}"
                raise NodeFailure("other_authority", words) from problem
            raise NodeFailure("away", f"{_place(url)} does not answer: {trust.reason(problem)}") from problem


def forget_and_tell(make: Callable[[], NodeClient], forget: Callable[[], object], method: str, path: str) -> str | None:
    """Forget another node, with the key that opens it, then tell it by one request.

    `make`: returns its client, while the key is still here. Returns why it could not be told; None where it was, or
    had revoked the key already.
    """
    try:
        client = make()
    except MlxqError as problem:
        forget()
        return problem.message
    forget()
    with client:
        try:
            client.ask(method, path)
        except MlxqError as problem:
            return None if client.refused else problem.message
    return None


def _unpinned(key: str) -> httpx.Client:
    """Return a client for a server whose certificate, if any, is of an authority that this machine trusts."""
    import ssl

    return trust.client(ssl.create_default_context(), key)


def _place(url: str) -> str:
    parts = httpx.URL(url)
    return f"{parts.host}:{parts.port}" if parts.port else parts.host


def _list(value: Any) -> Sequence[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _answer(name: str, response: httpx.Response) -> dict[str, Any]:
    """Return a node's answer. Raises the error that it is."""
    try:
        document: Any = json.loads(response.content)
    except ValueError as problem:
        raise MlxqError(f"The node {name} answered HTTP {response.status_code} without JSON.") from problem
    rows = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    if response.status_code == OK:
        return rows
    error = cast("dict[str, Any]", rows["error"]) if isinstance(rows.get("error"), dict) else {}
    message = plan.printable(str(error.get("message") or f"HTTP {response.status_code}"))
    if response.status_code == UNAUTHORIZED:
        raise MlxqError(f"The node {name} refuses this node's key: {message}", hint=f"mlxq node remove {name}")
    if response.status_code == MISSING and error.get("code") == "unknown_route":
        raise UsageProblem(f"The node {name} runs a version of mlxq that does not know this.", hint="mlxq node list")
    done, hint = (plan.printable(str(error.get(field) or "")) for field in ("done", "hint"))
    command = hint if not hint or "(" in hint else f"{hint}   (on {name})"
    raise rebuild(str(error.get("code") or "failed"), f"{name}: {message}", command or None, done or None)
