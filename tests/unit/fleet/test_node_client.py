"""Whom a node client believes, and what it says of one that it does not."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port

from state.errors import InvitationRefused
from state.fleet import Node
from tasks.fleet.node_client import NodeClient, NodeFailure, forget_and_tell
from tasks.system import certificates


@contextmanager
def machine(
    folder: Path, ahead: timedelta, handler: type[BaseHTTPRequestHandler] = BaseHTTPRequestHandler
) -> Iterator[Node]:
    """Serve as a machine whose clock was `ahead` when it made its certificate."""
    certificates.ensure(folder, ["studio.local"], datetime.now(UTC) + ahead)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_file(folder))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        authority = certificates.authority_file(folder).read_text()
        yield Node("studio", "mlxq", f"https://127.0.0.1:{server.server_port}", authority)
        server.shutdown()
        thread.join()


NOT_YET = "another machine answers at {place}, or a clock is wrong: certificate verify failed: certificate is not yet"


@pytest.mark.parametrize(("hours", "said"), [(20, "answers HTTP 501"), (-20, "answers HTTP 501"), (80, NOT_YET)])
def test_clocks_may_be_a_day_apart_and_more_is_said(tmp_path: Path, hours: int, said: str) -> None:
    with machine(tmp_path, timedelta(hours=hours)) as node, NodeClient(node, "sk-1") as client:
        observation = client.look()

    assert observation.status is None
    assert said.format(place=node.address.removeprefix("https://")) in observation.words, observation


def test_a_node_that_moved_is_asked_for_an_answer_where_it_is(tmp_path: Path) -> None:
    """As for its state: the address where it was last may be the one that it left."""
    with machine(tmp_path, timedelta()) as node:
        moved = replace(node, address=f"https://127.0.0.1:{free_port()}", addresses=(node.address,))
        with NodeClient(moved, "sk-1") as client:
            assert "answers HTTP 501" in client.look().words
            assert client.serves("standard"), "it answered, with another status than 404"
            assert not client.answers("standard")
        with NodeClient(replace(moved, addresses=()), "sk-1") as client, pytest.raises(NodeFailure, match="not answer"):
            client.answers("standard")


def answering(status: int, code: str, **words: str | None) -> type[BaseHTTPRequestHandler]:
    """Return what answers each request with an error of a node."""
    body = json.dumps({"error": {"message": "It is not so.", "code": code, **words}}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"done": "Nothing changed.", "hint": "mlxq node invite"}, "mlxq node invite   (on studio)"),
        ({"done": "Nothing changed.", "hint": "mlxq up   (on it)"}, "mlxq up   (on it)"),
        ({"done": "Nothing changed."}, None),
    ],
)
def test_an_error_of_a_node_has_its_name_and_says_where_to_run_what(
    tmp_path: Path, words: dict[str, str], hint: str | None
) -> None:
    handler = answering(409, "invitation_refused", **words)
    with (
        machine(tmp_path, timedelta(), handler) as node,
        NodeClient(node, "sk-1") as client,
        pytest.raises(InvitationRefused) as refused,
    ):
        client.ask("POST", "/fleet/v1/join", {})
    assert (refused.value.message, refused.value.done, refused.value.hint) == (
        "studio: It is not so.",
        "Nothing changed.",
        hint,
    )


@pytest.mark.parametrize(
    ("status", "code", "untold"), [(401, "invalid_api_key", None), (409, "busy", "studio: It is not so.")]
)
def test_a_node_that_revoked_the_key_already_need_not_be_told(
    tmp_path: Path, status: int, code: str, untold: str | None
) -> None:
    forgotten: list[str] = []
    with machine(tmp_path, timedelta(), answering(status, code)) as node:
        said = forget_and_tell(lambda: NodeClient(node, "sk-1"), lambda: forgotten.append(node.name), "POST", "/leave")
    assert (said, forgotten) == (untold, ["studio"])
