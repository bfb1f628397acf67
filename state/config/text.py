"""The text of a file that users edit, whatever is in its place: a folder, a pipe, another encoding, a huge file."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

LARGEST = 256 * 1024
"""Bytes; the largest file that a user would write by hand is a hundredth of that."""


class Unreadable(Exception):
    """A file that cannot be used. `line` counts from 1; None where the whole file is meant."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        """Take the reason as the end of a sentence, such as "it is a folder"."""
        super().__init__(reason)
        self.reason, self.line = reason, line


def read(path: Path) -> str | None:
    """Return the text of a file; None where there is no file. Raises Unreadable, and never waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable("it leads to a file that is not there") from None
        return None
    except OSError as problem:
        raise Unreadable((problem.strerror or "it cannot be opened").lower()) from problem
    try:
        _expect_regular(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST + 1)
    except OSError as problem:
        raise Unreadable((problem.strerror or "it cannot be read").lower()) from problem
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise Unreadable(f"it is larger than {LARGEST // 1024} KB")
    return decode(content)


def _expect_regular(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise Unreadable("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")


def decode(content: bytes) -> str:
    """Return the text of a file's content. Raises Unreadable."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("it is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        raise Unreadable("it is not UTF-8 text", line) from problem
