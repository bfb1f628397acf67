"""`mlxq notify`: targets are added, listed, removed; what is a secret stays in one file."""

from __future__ import annotations

import io
import json
import stat

import pytest

from mlxq import cli
from state import ledger
from state.db import Database
from state.notify import notices, targets
from state.paths import Home
from tasks import kinds

URL = "https://hooks.example/T00/B00/very-secret-path"


def known(home: Home) -> dict[str, targets.NotifyTarget]:
    return targets.read(targets.file(home))


def test_a_webhooks_secret_is_printed_once_and_kept_in_one_private_file(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["notify", "add", "ops", "webhook", URL]) == 0

    secret = capsys.readouterr().out.strip()
    assert secret.startswith("whsec_")
    assert known(home)["ops"].secret == secret
    assert stat.S_IMODE(targets.file(home).stat().st_mode) == 0o600
    for text in (secret, "very-secret-path"):
        holders = [path for path in home.root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
        assert holders == [targets.file(home)]
        assert text not in repr(known(home)["ops"])


def test_url_and_token_may_come_from_standard_input(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("https://ntfy.example/my-topic\ntk_12345678\n"))

    assert cli.run(["notify", "add", "phone", "ntfy", "-", "--secret-stdin"]) == 0

    assert (known(home)["phone"].url, known(home)["phone"].secret) == ("https://ntfy.example/my-topic", "tk_12345678")


def test_a_program_keeps_its_options_and_gets_its_whole_path(home: Home) -> None:
    assert cli.run(["notify", "add", "own", "command", "--", "sh", "-c", "cat >/dev/null"]) == 0
    assert known(home)["own"].argv[0].startswith("/")
    assert known(home)["own"].argv[1:] == ("-c", "cat >/dev/null")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/x",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "gopher://127.0.0.1:25/x",
        "http://",
        "https:///path",
        "//host/x",
        "host/x",
        "http://user:password@host/",
        "http://user@host/",
        "http://host/#part",
        "http://host:99999/",
        "http://host:x/",
        "http://[::1/",
        "http://host/a b",
        "http://host/\r\nX-Header: 1",
        "http://hö.st/",
        "http://host/" + "a" * 2000,
    ],
)
def test_only_plain_http_and_https_are_let_in(home: Home, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["notify", "add", "ops", "webhook", url]) == 2
    assert known(home) == {}
    assert "password" not in capsys.readouterr().err.replace("a password or", "")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/x", "http://[::1]:80/", "http://192.168.1.5/hook"])
def test_hosts_of_ones_own_are_let_in(home: Home, url: str) -> None:
    assert cli.run(["notify", "add", "ops", "webhook", url]) == 0


@pytest.mark.parametrize(
    "url", ["https://ntfy.sh", "https://ntfy.sh/a/b", "https://ntfy.sh/a?x=1", "https://ntfy.sh/ä"]
)
def test_ntfy_needs_a_topic(home: Home, url: str) -> None:
    assert cli.run(["notify", "add", "phone", "ntfy", url]) == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["Ops", "webhook", URL],
        ["a/../b", "webhook", URL],
        ["ops", "webhook"],
        ["ops", "webhook", URL, URL],
        ["ops", "pager", URL],
        ["ops", "command"],
        ["ops", "macos", "x"],
        ["ops", "macos", "--secret-stdin"],
    ],
)
def test_wrong_use_is_said_to_be_one(home: Home, argv: list[str]) -> None:
    assert cli.run(["notify", "add", *argv]) == 2
    assert known(home) == {}


def test_a_name_is_taken_once_and_targets_are_few(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Each may hold a thread of the queue for as long as its server does not answer."""
    assert cli.run(["notify", "add", "t0", "macos"]) == 0
    assert cli.run(["notify", "add", "t0", "macos"]) == 2
    for number in range(1, targets.MOST):
        assert cli.run(["notify", "add", f"t{number}", "macos"]) == 0
    assert cli.run(["notify", "add", "more", "macos"]) == 2
    assert "There are 5 notification targets already." in capsys.readouterr().err


def test_the_list_shows_no_secret_and_the_problem_of_the_last_delivery(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["notify", "add", "ops", "webhook", URL])
    secret = capsys.readouterr().out.strip()
    job, _ = ledger.enqueue(db, kinds.new("notify", {"target": "ops"}), source="watchdog")
    db.run("UPDATE jobs SET error = 'The notification target ops answered with status 500.' WHERE id = ?", (job,))

    cli.run(["notify", "list"])
    cli.run(["notify", "list", "--json"])

    shown = capsys.readouterr().out
    assert secret not in shown
    assert "very-secret-path" not in shown
    assert "https://hooks.example/…" in shown
    assert shown.count("answered with status 500") == 2


def test_a_removed_target_gets_nothing_more(home: Home, db: Database) -> None:
    cli.run(["notify", "add", "ops", "webhook", URL])
    ledger.enqueue(db, kinds.new("notify", {"target": "ops"}), source="watchdog")

    assert cli.run(["notify", "remove", "ops"]) == 0
    assert cli.run(["notify", "remove", "ops"]) == 1

    assert known(home) == {}
    assert notices.begun(db) == set()
    assert db.value("SELECT state FROM jobs WHERE kind = 'notify'") == "cancelled"


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[{}]", '[{"name": "a"}]', "[" * 100_000, "\x00", '[{"name":"A","kind":"macos"}]']
)
def test_a_damaged_file_is_an_error_and_never_a_traceback(
    home: Home, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    targets.file(home).write_text(text)
    targets.file(home).chmod(0o600)

    assert cli.run(["notify", "list"]) == 1
    assert "Cannot read the notification targets" in capsys.readouterr().err


def test_a_file_that_others_may_read_is_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["notify", "add", "ops", "webhook", URL])
    targets.file(home).chmod(0o640)

    assert cli.run(["notify", "list"]) == 1
    assert "chmod 600" in capsys.readouterr().err


def test_the_document_of_the_list_is_for_programs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["notify", "add", "screen", "macos", "--always"])
    cli.run(["notify", "list", "--json"])

    (row,) = json.loads(capsys.readouterr().out)["targets"]
    assert row == {
        "name": "screen",
        "kind": "macos",
        "target": "this Mac",
        "always": True,
        "delivered_at": None,
        "waiting": 0,
        "problem": None,
    }
