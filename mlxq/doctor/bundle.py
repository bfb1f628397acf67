"""The archive to attach to a bug report: what is true, what happened, no secrets and no prompts."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from mlxq import status_report
from mlxq.doctor import checks, rules
from mlxq.doctor.rules import Finding
from state import files, secrets, settings
from state.db import read_database
from state.errors import MlxqError, UsageProblem
from state.paths import Home

LOG_BYTES = 256 * 1024
"""Bytes of each log, from its end."""
ROWS = 500
"""How many of the newest jobs and events."""
TABLES: Mapping[str, str] = {
    "jobs": "id",
    "events": "id",
    "services": "name",
    "engines": "position",
    "tiers": "position",
}


def write(home: Home, findings: Sequence[Finding], target: Path) -> None:
    """Write the archive, mode 0600, in one step. Raises UsageProblem when `target` exists or cannot be written."""
    if target.exists():
        raise UsageProblem(f"{target} already exists.", done="It was not changed.", hint="mlxq doctor --help")
    hidden = _secrets(home)
    packed = io.BytesIO()
    try:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, text in _parts(home, findings):
                _add(archive, name, rules.scrub(text, hidden))
        files.replace(target, packed.getvalue(), 0o600)
    except OSError as problem:
        raise UsageProblem(f"Cannot write {target}: {problem.strerror}.", hint="mlxq doctor --help") from problem


def _secrets(home: Home) -> list[str]:
    """Return every secret that is known, so that none can pass whatever its form."""
    values = [token] if (token := checks.hub_token()) else []
    with suppress(MlxqError):
        values += secrets.read(home.secrets).values()
    with suppress(MlxqError):
        values += [str(value.value) for value in settings.load(home).values.values() if value.setting.secret]
    return values


def _parts(home: Home, findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """Return each file's name in the archive and its text."""
    yield (
        "doctor.json",
        _json([{"area": finding.area, "grade": finding.grade, "text": finding.text} for finding in findings]),
    )
    yield "packages.txt", "\n".join(sorted(f"{package.name} {package.version}" for package in metadata.distributions()))
    yield "environment.txt", "\n".join(sorted(os.environ))
    for path in (home.config, home.gateway_config):
        if path.is_file():
            yield path.name, path.read_text(encoding="utf-8", errors="replace")
    yield from _rows(home)
    for log in sorted(home.logs.glob("*.log")):
        yield f"logs/{log.name}", files.tail(log, LOG_BYTES)


def _rows(home: Home) -> Iterator[tuple[str, str]]:
    """Return the newest rows of the tables, and the report of `mlxq status`."""
    try:
        with closing(read_database(home)) as db:
            yield "status.json", _json(status_report.collect(db).document())
            for table, order in TABLES.items():
                rows = db.rows(f"SELECT * FROM {table} ORDER BY {order} DESC LIMIT {ROWS}")  # noqa: S608 (our own names)
                yield f"{table}.json", _json([dict(row) for row in rows])
    except MlxqError as problem:
        yield "database.txt", problem.message


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(f"mlxq/{name}")
    entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
    archive.addfile(entry, io.BytesIO(content))
