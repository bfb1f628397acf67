"""How far an upgrade is: MLXQ_HOME/upgrade.json.

A file and no row: state.db changes its schema in the middle, and goes back to a copy on the way back. Each phase is
written before its first effect, so that who finds the file knows what may have happened:

    switch      the new version is proven; the old worker makes room for the new one
    verify      the new worker runs; it replaces what runs by the old version
    done        the new version serves
    back        the guard makes the old version serve again
    taken_back  the old version serves again; `reason` says why
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from state import files
from state.classes import dataclass
from state.errors import Busy
from state.paths import Home

CURRENT = "upgrade.json"
LOCK = "upgrade.lock"
"""Held while a step is written."""
BY_USER = "asked"


class Phase(StrEnum):
    """How far an upgrade is."""

    SWITCH = "switch"
    VERIFY = "verify"
    DONE = "done"
    BACK = "back"
    TAKEN_BACK = "taken_back"


UNSETTLED = frozenset({Phase.SWITCH, Phase.VERIFY, Phase.BACK})


@dataclass(frozen=True)
class Version:
    """One version of mlxq, and how to run it."""

    version: str
    python: str
    """The interpreter of its environment."""
    schema: int
    """The schema of state.db that it writes."""


@dataclass(frozen=True)
class Record:
    """An upgrade from its switch on."""

    phase: Phase
    at: float
    """Unix seconds of the last step."""
    job: int
    """The job that leads it."""
    before: Version
    after: Version
    origin: str
    """The program that the user's PATH and the autostart entry lead to: of the installation that was there first."""
    system: bool = False
    """Whether launchd or systemd runs the worker."""
    reason: str = ""
    """Why it was taken back; `BY_USER` when a user asked for it."""
    backup: str = ""
    """The copy of state.db that was restored on the way back, if one was."""

    @property
    def unsettled(self) -> bool:
        """Return whether it is under way."""
        return self.phase in UNSETTLED


def path(home: Home) -> Path:
    """Return the file of the latest upgrade."""
    return home.root / CURRENT


def read(home: Home) -> Record | None:
    """Return the latest upgrade; None when there was none, or what is there cannot be read."""
    try:
        return _record(json.loads(path(home).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(document: Mapping[str, Any]) -> Record:
    fields = Record.__dataclass_fields__.keys()
    values: dict[str, Any] = {name: document[name] for name in fields if name in document}
    values |= {side: Version(**document[side]) for side in ("before", "after")}
    values["phase"] = Phase(document["phase"])
    return Record(**values)


def write(home: Home, record: Record) -> Record:
    """Write a step down, and return it. Raises OSError; what was written before is then still there."""
    files.replace_private(path(home), json.dumps(asdict(record), indent=1))
    return record


def step(home: Home, record: Record, phase: Phase, at: float, **changes: str) -> Record:
    """Write the step after `record` down, and return it. Raises Busy when another process took one, OSError."""
    fields: dict[str, Any] = dict(changes)
    with (home.run / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read(home) != record:
            raise Busy("The upgrade took another step meanwhile.", hint="mlxq upgrade --check")
        return write(home, replace(record, phase=phase, at=at, **fields))
