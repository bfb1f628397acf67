"""`mlxq chat` without words on a real terminal: a conversation. The gateway stands in, and answers what it is told."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pexpect
import pytest
from support.mlxq_home import TIER

from state import secrets, settings, stack
from state.db import Database
from state.paths import Home

LINES = "# Cities\n\n- **Paris**\n- Rome\n\n```python\nprint('hi')\n\nprint('ho')\n```\n\nThe end.\x1b]0;owned\x07"
ENDLESS = "endless"


class Gateway(BaseHTTPRequestHandler):
    """Streams an answer, a word a token, and usage; some prompts never end or are refused."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[dict[str, Any]]] = []
    left = threading.Event()
    typed = threading.Event()

    def do_POST(self) -> int | None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Gateway.bodies.append(body)
        prompt = body["messages"][-1]["content"]
        if prompt == "refuse":
            return self._refuse()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if prompt == ENDLESS:
            return self._stream_without_end()
        if prompt == "wait":
            self._event({"choices": [{"delta": {"content": "one "}}]})
            Gateway.typed.wait(60)
        text = LINES if prompt == "list" else f"You said {prompt}"
        for piece in re.findall(r"\s*\S+\s*", text):
            self._event({"choices": [{"delta": {"content": piece}}]})
        usage = {"prompt_tokens": 1234, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1100}}
        self._event({"choices": [], "usage": usage})
        return self.wfile.write(b"data: [DONE]\n\n")

    def _stream_without_end(self) -> None:
        try:
            while True:
                self._event({"choices": [{"delta": {"content": "word "}}]})
                threading.Event().wait(0.02)
        except OSError:
            Gateway.left.set()

    def _refuse(self) -> None:
        text = b'{"error": {"message": "context is too long", "code": "400"}}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing."""


@pytest.fixture
def served(home: Home, db: Database) -> Iterator[Home]:
    """Return a home with two tiers and a gateway."""
    Gateway.bodies.clear()
    Gateway.left.clear()
    Gateway.typed.clear()
    stack.replace(db, [TIER, replace(TIER, name="standard", port=9999)])
    secrets.ensure(home.secrets)
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        settings.write(home, "litellm-port", server.server_port)
        yield home
        server.shutdown()


def talk(home: Home, *argv: str) -> pexpect.spawn[str]:
    """Start `mlxq chat` on a terminal of 24 lines."""
    environment = os.environ | {"MLXQ_HOME": str(home.root), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    child = pexpect.spawn(
        sys.executable,
        ["-P", "-m", "mlxq", "chat", *argv],
        env=environment,
        timeout=60,
        dimensions=(24, 80),
        encoding="utf-8",
    )
    child.expect(">>>")
    return child


def say(child: pexpect.spawn[str], line: str, *words: str) -> None:
    """Type a line, and wait for each of the words in order, and for the next prompt."""
    child.send(line + "\r")
    for word in words:
        child.expect_exact(word)
    child.expect(">>>")


def test_a_conversation_is_sent_whole_and_has_commands(served: Home, tmp_path: Path) -> None:
    child = talk(served)
    say(child, "hello", "You said hello", "7 tokens", "prompt 1,234 tokens, 1,100 cached")
    say(child, '/system "Be brief."', "The system prompt is set.")
    say(child, "/model standard", "standard answers from now on.")
    say(child, '"""one\rtwo"""', "You said one")
    say(child, "/nosuch", "There is no command '/nosuch'.")
    say(child, f"/save {tmp_path}/talk.md", "Wrote")
    say(child, "/clear", "The conversation is forgotten.")
    say(child, "again", "You said again")
    child.send("/bye\r")
    child.expect(pexpect.EOF)

    assert [message["content"] for message in Gateway.bodies[1]["messages"]] == [
        *("Be brief.", "hello", "You said hello", "one\ntwo"),
    ]
    assert [body["model"] for body in Gateway.bodies] == ["fast", "standard", "standard"]
    assert [message["content"] for message in Gateway.bodies[2]["messages"]] == ["Be brief.", "again"]
    assert "## user\n\none\ntwo\n" in (tmp_path / "talk.md").read_text()


def test_markdown_is_drawn_and_nothing_takes_over_the_terminal(served: Home) -> None:
    child = talk(served)
    child.send("list\r")
    child.expect_exact("The end.")
    drawn = child.before or ""
    child.expect(">>>")
    drawn += child.before or ""
    assert "**" not in drawn
    assert "```" not in drawn
    assert "\x1b]0;" not in drawn
    assert r"\x1b]0;owned\x07" in drawn
    child.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(served: Home) -> None:
    child = talk(served)
    child.send(f"{ENDLESS}\r")
    child.expect_exact("word word")
    child.sendintr()
    child.expect_exact("Stopped.")
    child.expect(">>>")
    assert Gateway.left.wait(20)

    say(child, "refuse", "The gateway refused: context is too long")
    say(child, "more", "You said more")
    assert Gateway.bodies[-1]["messages"][1]["content"].startswith("word word")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_what_is_typed_in_an_answer_is_not_shown_in_it_and_is_the_next_prompt(served: Home) -> None:
    child = talk(served)
    child.send("wait\r")
    child.expect_exact("one")
    child.send("typed early\r")
    Gateway.typed.set()
    child.expect_exact("You said wait")
    assert "typed" not in child.before
    child.expect_exact("You said typed early")
    child.expect(">>>")
    child.close()


def test_the_last_conversation_is_continued_and_private(served: Home) -> None:
    child = talk(served, "--tier", "standard")
    say(child, "hello", "You said hello")
    child.sendeof()
    child.expect(pexpect.EOF)
    assert [path.stat().st_mode & 0o777 for path in sorted(served.chats.iterdir())] == [0o600, 0o600]
    assert served.chats.stat().st_mode & 0o777 == 0o700

    child = talk(served, "-c")
    child.send("\x1b[A")  # the arrow up brings the prompt back
    child.expect_exact("hello")
    say(child, " again", "You said hello again")
    child.close()

    assert (Gateway.bodies[-1]["model"], len(Gateway.bodies[-1]["messages"])) == ("standard", 3)


def test_a_cleared_conversation_is_not_continued(served: Home) -> None:
    child = talk(served)
    say(child, "hello", "You said hello")
    say(child, "/clear", "The conversation is forgotten.")
    child.sendeof()
    child.expect(pexpect.EOF)

    child = talk(served, "-c")
    say(child, "again", "You said again")
    child.close()
    assert len(Gateway.bodies[-1]["messages"]) == 1


def test_nothing_is_kept_where_the_setting_is_off(served: Home) -> None:
    settings.write(served, "keep-chats", False)
    child = talk(served)
    say(child, "hello", "You said hello")
    child.close()
    assert not served.chats.exists()
