"""A log on the page: its end, what is new, what is rotated; text that is no more than text."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import pytest

from mlxq.web import log_stream
from state.errors import NotFound
from state.paths import Home


def read(home: Home, *steps: str) -> list[list[str]]:
    """Return what a reader is sent after each step appended its text; None truncates, as a rotation does."""

    async def run() -> list[list[str]]:
        sent: list[list[str]] = []
        async with aclosing(log_stream.follow(home, "fast", asyncio.Event())) as stream:
            for step in ("", *steps):
                with home.log("fast").open("w" if step.startswith("rotated") else "a") as file:
                    file.write(step)
                async with asyncio.timeout(60):
                    event = (await anext(stream)).decode()
                sent.append(json.loads(event.partition("data: ")[2]))
        return sent

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "LOOK_S", 0.001)


def test_a_reader_is_sent_the_end_then_whole_new_lines_and_the_start_of_a_rotated_log(home: Home) -> None:
    home.log("fast").write_text("first\nhalf")
    assert read(home, " and whole\nnext\n", "rotated\n") == [["first"], ["half and whole", "next"], ["rotated"]]


def test_what_grows_too_fast_is_skipped_and_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "MOST_BYTES", 10)
    home.log("fast").write_text("a\n")
    assert read(home, "x" * 40 + "\n12345678\n") == [["a"], ["[40 bytes skipped]", "", "12345678"]]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("\x1b[31mred\x1b[0m and plain", "red and plain"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("back\x08 \u202egnp.exe", "back\\x08 \\u202egnp.exe"),
        ("<script>", "<script>"),
        ("y" * 5000, "y" * log_stream.LINE_CHARS),
    ],
)
def test_control_characters_have_no_effect(line: str, text: str) -> None:
    assert log_stream.clean(line) == text


@pytest.mark.parametrize("name", ["", "..", "../secrets", "/etc/passwd", "nothing"])
def test_a_name_is_never_a_path(home: Home, name: str, tmp_path: Path) -> None:
    (tmp_path / "secrets.log").write_text("secret")
    home.log("fast").write_text("")
    with pytest.raises(NotFound):
        log_stream.follow(home, name, asyncio.Event())
