"""Whom a node client believes, and what it says of one that it does not."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.ports import free_port

from state.fleet import Node
from tasks.fleet.node_client import NodeClient, NodeFailure
from tasks.system import certificates


@contextmanager
def machine(folder: Path, ahead: timedelta) -> Iterator[Node]:
    """Serve as a machine whose clock was `ahead` when it made its certificate."""
    certificates.ensure(folder, ["studio.local"], datetime.now(UTC) + ahead)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_file(folder))
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
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
