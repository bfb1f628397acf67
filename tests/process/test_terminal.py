"""Text from outside on a real terminal: no escape sequence of it gets through, whatever the command."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pexpect
import pytest
from support import scene

from mlxq import terminal
from state import event, ledger, service
from state.db import Database
from state.errors import EngineFailed
from state.paths import Home
from state.service import ServiceEvent
from tasks import kinds

HOSTILE = "a\x1b]0;owned\x07b\x1b[2J\x1b[31mc\x1b]52;c;ZXZpbA==\x07d\x9b5ne\x9df\rg\x08h\u202etxt.exe\u2066i\x00j"
"""A title, a cleared screen, the clipboard, a question that is answered as if typed, and text that runs backwards."""
ALLOWED = re.compile(r"\x1b\[(?:0|1|2|3[0-79]|9[0-7])m")
LIVE = re.compile(r"\x1b\[\?(?:25|1049)[hl]|\r?\x1b\[\d*[AHJK]|\x1b\[[\d;]*m")
"""And what a view that redraws itself needs."""
SPECIAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\r*\n)")


@pytest.fixture
def hostile(rows: Database) -> Database:
    """Let every text that comes from outside be hostile: arguments, errors, causes, events, a log, a folder."""
    home = rows.home
    scene.set_up(rows)
    number, _ = ledger.enqueue(rows, kinds.new("pull", {"source": f"file:/{HOSTILE}"}))
    held = ledger.claim(rows, "heavy", {"pull"}, "worker")
    assert held
    ledger.report(rows, held, HOSTILE, {"file": HOSTILE})
    ledger.fail(rows, held, EngineFailed(HOSTILE, hint=f"mlxq {HOSTILE}"))
    scene.pull(rows)
    service.apply(rows, "fast", ServiceEvent.FAILED, cause=HOSTILE, cause_code="failed", hint=HOSTILE)
    event.record(rows, "failed", service="standard", attempt=1, cause=HOSTILE)
    home.log("fast").write_text(f"{HOSTILE}\n" * 3)
    folder = home.models / HOSTILE.replace("\x00", "").replace("/", "")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(f'{{"model_type": "{ascii(HOSTILE)[1:5]}"}}')
    assert number
    return rows


def shown(home: Home, *argv: str) -> str:
    """Return what a command writes to a terminal of its own."""
    environment = os.environ | {"MLXQ_HOME": str(home.root), "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    child = pexpect.spawn(
        sys.executable, ["-P", "-m", "mlxq", *argv], env=environment, timeout=60, dimensions=(50, 120), encoding="utf-8"
    )
    child.expect(pexpect.EOF)
    return child.before or ""


@pytest.mark.parametrize(
    "argv",
    [
        ["jobs"], ["jobs", "show", "1"], ["jobs", "list", "--json"], ["logs", "fast"], ["logs", "fast", "--all"],
        ["why"], ["why", "fast"], ["status"], ["models"], ["top", "--once"], ["doctor"], ["pull", f"./{HOSTILE[:-2]}"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_text_takes_over_a_terminal(argv: list[str], hostile: Database) -> None:
    hostile.run("UPDATE services SET desired = 'down'")  # a worker, which a pull starts, would start what should run
    said = shown(hostile.home, *argv)

    allowed = LIVE if argv[0] in {"top", "pull"} else ALLOWED
    assert SPECIAL.findall(allowed.sub("", said)) == []
    assert len(said) > 20


def test_a_pipe_gets_a_log_as_it_is(hostile: Database) -> None:
    command = [sys.executable, "-P", "-m", "mlxq", "logs", "fast", "--all"]
    piped = pexpect.run(
        f"/bin/sh -c '{' '.join(command)} | od -An -c'",
        env=os.environ | {"MLXQ_HOME": str(hostile.home.root)},
        timeout=120,
    )
    assert isinstance(piped, bytes)
    assert b"033   ]   0   ;   o   w   n   e   d" in re.sub(rb"\s+", b"   ", piped)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain ü 模型 😀\n\t", "plain ü 模型 😀\n\t"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[8mhidden", "\\x1b[8mhidden"),
        ("\x1b[31;1mboth", "\\x1b[31;1mboth"),
        ("\x1b]8;;http://x\x1b\\link", "\\x1b]8;;http://x\\x1b\\link"),
        ("over\rwritten", "over\\rwritten"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_what_is_special_is_escaped(text: str, seen: str, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", newline="") as file:
        terminal.Terminal(file).write(text)
    assert (tmp_path / "out").read_text() == seen
    assert "\x1b" not in terminal.printable(text)
