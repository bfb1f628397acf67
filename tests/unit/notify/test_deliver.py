"""Deliveries to real servers and programs, which behave badly."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.receiver import Receiver, receiving

from mlxq import status_report
from mlxq.doctor import checks
from state import ledger
from state.db import Database
from state.errors import MlxqError, Offline, UsageProblem
from state.notify import targets
from state.notify.notices import Notice
from state.notify.targets import NotifyTarget
from state.paths import Home
from tasks import config_problems
from tasks.kinds import new
from tasks.notify import deliver, http_request, program
from tasks.plan import notices as plan

MESSAGE = plan.compose([Notice(60.0, "crash_loop", "fast", "error", "fast is in a crash loop: Ü.", 7)], "mini", 120.0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def test_a_webhook_gets_a_document_that_its_secret_signs(receiver: Receiver) -> None:
    """Checked as the specification of Standard Webhooks says, not with the code under test."""
    secret = targets.generate_secret()
    deliver.send(NotifyTarget("ops", "webhook", f"{receiver.url}/hook?a=1", secret=secret), MESSAGE)

    (request,) = receiver.requests
    content = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    assert request.line == "POST /hook?a=1 HTTP/1.1"
    assert request.headers["webhook-signature"] == f"v1,{signature}"
    document = json.loads(request.body)
    assert (document["severity"], document["host"]) == ("error", "mini")
    assert document["events"] == [
        {
            "id": 7,
            "at": "1970-01-01T00:01:00Z",
            "event": "crash_loop",
            "subject": "fast",
            "severity": "error",
            "message": "fast is in a crash loop: Ü.",
        }
    ]


def test_a_secret_of_the_users_own_signs_as_it_is(receiver: Receiver) -> None:
    deliver.send(NotifyTarget("ops", "webhook", receiver.url, secret="correct-horse"), MESSAGE)

    (request,) = receiver.requests
    content = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    signature = base64.b64encode(hmac.digest(b"correct-horse", content, hashlib.sha256)).decode()
    assert request.headers["webhook-signature"] == f"v1,{signature}"


def test_ntfy_gets_its_topic_and_its_token(receiver: Receiver) -> None:
    deliver.send(NotifyTarget("phone", "ntfy", f"{receiver.url}/my-topic", secret="tk_12345678"), MESSAGE)

    (request,) = receiver.requests
    document = json.loads(request.body)
    assert request.line == "POST / HTTP/1.1"
    assert request.headers["authorization"] == "Bearer tk_12345678"
    assert (document["topic"], document["priority"], document["tags"]) == ("my-topic", 5, ["rotating_light"])
    assert document["title"] == "mlxq on mini: fast is in a crash loop"
    assert "Ü" in document["message"]


def test_a_deadman_is_asked_with_nothing_but_its_url(receiver: Receiver) -> None:
    deliver.ping(NotifyTarget("dead", "deadman", f"{receiver.url}/ping/uuid"))
    assert (receiver.requests[0].line, receiver.requests[0].body) == ("GET /ping/uuid HTTP/1.1", b"")


@pytest.mark.parametrize("do", ["500", "502", "503", "429", "408", "close", "garbage"])
def test_what_may_pass_is_tried_again(receiver: Receiver, do: str) -> None:
    receiver.do = do
    with pytest.raises(Offline) as problem:
        deliver.ping(NotifyTarget("dead", "deadman", f"{receiver.url}/secret-path"))
    assert "secret-path" not in str(problem.value)


@pytest.mark.parametrize("do", ["301", "302", "307", "308"])
def test_a_redirect_is_not_followed(receiver: Receiver, do: str) -> None:
    receiver.do = do
    with pytest.raises(MlxqError, match=f"redirects \\(status {do}\\)") as problem:
        deliver.send(NotifyTarget("ops", "webhook", receiver.url, secret="correct-horse"), MESSAGE)
    assert not problem.value.retry
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("do", ["400", "401", "404", "410"])
def test_what_no_further_try_changes_fails_at_once(receiver: Receiver, do: str) -> None:
    receiver.do = do
    with pytest.raises(MlxqError, match=f"refused the message with status {do}") as problem:
        deliver.send(NotifyTarget("ops", "webhook", receiver.url, secret="correct-horse"), MESSAGE)
    assert not problem.value.retry


@pytest.mark.parametrize("do", ["hang", "drip"])
def test_a_server_that_hangs_or_drips_is_left_in_time(receiver: Receiver, do: str) -> None:
    receiver.do = do
    with pytest.raises(Offline, match=r"did not answer within 0\.5 s"):
        http_request.send("ops", "GET", receiver.url, headers={}, limit_s=0.5)


def test_a_server_that_is_not_there_is_tried_again(receiver: Receiver) -> None:
    with pytest.raises(Offline, match="cannot be reached"):
        http_request.send("ops", "GET", "http://127.0.0.1:9/", headers={})
    with pytest.raises(Offline, match="cannot be reached"):
        http_request.send("ops", "GET", "http://no-such-host.invalid/", headers={})


def test_a_program_gets_the_document_and_no_secret_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-secret")
    out = tmp_path / "out"
    script = "import json, os, sys; json.dump([json.load(sys.stdin), dict(os.environ)], open(sys.argv[1], 'w'))"
    argv = (sys.executable, "-c", script, str(out))

    deliver.send(NotifyTarget("own", "command", argv=argv), MESSAGE)

    document, environment = json.loads(out.read_text())
    assert document["events"][0]["event"] == "crash_loop"
    assert environment["MLXQ_TITLE"] == "mlxq on mini: fast is in a crash loop"
    assert "OPENROUTER_API_KEY" not in environment


def test_a_program_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    argv = ["/bin/sh", "-c", f"sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"]
    for limit_s in (1.0, 5.0, 60.0):  # on a busy machine it may not have started yet
        with pytest.raises(Offline, match=rf"ran longer than {limit_s:g} s\."):
            program.run("own", argv, b"", {}, limit_s=limit_s)
        if pid.exists():
            break
    child = int(pid.read_text())
    until = time.monotonic() + 60
    while _runs(child) and time.monotonic() < until:
        threading.Event().wait(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_that_fails_or_is_gone_says_so() -> None:
    with pytest.raises(Offline, match="exit code 3"):
        program.run("own", ["/bin/sh", "-c", "exit 3"], b"x" * 100_000, {})
    with pytest.raises(MlxqError, match="cannot be started: No such file"):
        program.run("own", ["/no/such/program"], b"", {})


OSASCRIPT = """#!{python}
# As macOS's own does: -e lines are one script, what follows are its arguments; it fails without a user at the screen.
import sys, pathlib
words, lines = sys.argv[1:], []
while words[:1] == ["-e"]:
    lines.append(words[1]); words = words[2:]
assert lines[0] == "on run argv" and lines[-1] == "end run", lines
if pathlib.Path({folder!r}, "headless").exists():
    sys.exit("execution error: An error of type -10810 has occurred. (-10810)")
pathlib.Path({folder!r}, "shown").write_text(repr(words))
"""


def test_macos_shows_the_message_as_an_argument_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    osascript = tmp_path / "osascript"
    osascript.write_text(OSASCRIPT.format(python=sys.executable, folder=str(tmp_path)))
    osascript.chmod(osascript.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    deliver.send(NotifyTarget("screen", "macos"), MESSAGE)

    assert (tmp_path / "shown").read_text() == repr([MESSAGE.title, MESSAGE.text])
    (tmp_path / "headless").touch()
    with pytest.raises(MlxqError, match="-10810"):
        deliver.send(NotifyTarget("screen", "macos"), MESSAGE)


@pytest.mark.parametrize(
    "secret", ["whsec_", "whsec_not base64", "whsec_c2hvcnQ=", "whsec_MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM"]
)
def test_a_standard_secret_that_is_none_is_refused_when_it_is_set(home: Home, secret: str) -> None:
    with pytest.raises(UsageProblem):
        targets.add(targets.file(home), NotifyTarget("ops", "webhook", "http://127.0.0.1/hook", secret=secret))
    assert targets.read(targets.file(home)) == {}


@pytest.mark.parametrize(("state", "failures", "shown"), [("queued", 1, 0), ("queued", 2, 1), ("failed", 72, 1)])
def test_a_target_that_keeps_failing_is_named(rows: Database, state: str, failures: int, shown: int) -> None:
    targets.add(targets.file(rows.home), NotifyTarget("ops", "webhook", "http://127.0.0.1/hook", secret="s" * 8))
    ledger.enqueue(rows, new("notify", {"target": "ops"}))
    rows.run(
        "UPDATE jobs SET state = ?, failures = ?, error = 'It answered 500.', finished_at = ? WHERE kind = 'notify'",
        (state, failures, 1.0 if state == "failed" else None),
    )
    problems = config_problems.of_targets(rows)
    assert [problem.message for problem in problems] == ["Notifications do not reach ops: It answered 500."][:shown]
    assert [problem.message for problem in status_report.collect(rows).config] == [one.message for one in problems]
    assert [finding.grade for finding in checks._notify(rows.home)] == ["warn" if shown else "ok"]
