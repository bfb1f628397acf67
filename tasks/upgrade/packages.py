"""The child that finds a version of mlxq in the package index and makes its environment.

uv asks the index, which says the hash of each file of mlxq. The libraries come by the lock in mlxq's wheel, held to the
hashes with which that version was tested. So neither the index nor who installed something beside mlxq decides what the
new environment is made of. It gets its name after it has run (tasks/engines/environments.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from catalog import units
from state.errors import Damaged, DoesNotFit, MlxqError, NotFound, Offline
from state.files import replace_private
from tasks.engines import environments, install, installed
from tasks.engines.install import uv_environment
from tasks.system import free_space
from tasks.system.child import Report, answer
from tasks.upgrade.record import Version

LOCK = "tasks/upgrade/lock.txt"
"""In site-packages: what a version of mlxq needs, as it was tested. `just lock-own` makes it."""
PROOF = "version.json"
NEED_BYTES = 1_200_000_000
"""Of an environment with its download, and what is left free on the disk."""
LOOK_UP_S = 60.0
FIND = ("pip", "compile", "--no-deps", "--no-build", "--no-header", "--no-annotate", "--generate-hashes", "-")
PINNED = re.compile(r"^mlxq==(\S+)", re.MULTILINE)
YANKED = re.compile(r"is yanked(?: \(reason: \"(.*?)\"\))?")
VERSION = re.compile(r"\d[\w.!+-]{0,40}")
KEPT = "Nothing was changed."
AGAIN = "mlxq upgrade --check"
DIAGNOSE = "mlxq doctor"
"""After a look for any version: `AGAIN` would be the same command."""


@dataclass(frozen=True)
class FoundVersion:
    """A version of mlxq that the index has."""

    version: str
    requirement: str
    """A line of a lock: mlxq==VERSION and the hashes that the index says."""


def find(wanted: str | None = None, wait_s: float = LOOK_UP_S) -> FoundVersion:
    """Return the version `wanted`, or the newest that is no preview, not yanked and fits this Python.

    Raises NotFound, Offline when the index does not answer within `wait_s` seconds, Damaged for a yanked version.
    """
    require_version(wanted)
    line = f"mlxq=={wanted}\n" if wanted else "mlxq\n"
    ran = _ask(line, wait_s)
    pinned = PINNED.search(ran.stdout)
    if ran.returncode or not pinned:
        raise _unfound(wanted, ran.stderr)
    if wanted and (yanked := YANKED.search(ran.stderr)):
        reason = f": {yanked[1].rstrip('.')}" if yanked[1] else ""
        raise Damaged(f"mlxq {wanted} was yanked from the package index{reason}.", done=KEPT, hint=AGAIN)
    return FoundVersion(pinned[1], re.sub(r"\\\n\s*", "", ran.stdout[pinned.start() :]).strip())


def require_version(wanted: str | None) -> None:
    """Raise NotFound where what is asked for cannot be a version."""
    if wanted is not None and not VERSION.fullmatch(wanted):
        raise NotFound(f"{wanted!r} is no version.", done=KEPT, hint=AGAIN)


def _ask(line: str, wait_s: float) -> subprocess.CompletedProcess[str]:
    from uv import find_uv_bin

    argv = [find_uv_bin(), *FIND, "--no-config", "--python", sys.executable]
    environment = uv_environment(os.environ) | {"UV_HTTP_TIMEOUT": str(int(wait_s / 2)), "UV_HTTP_RETRIES": "1"}
    try:
        return subprocess.run(
            argv, input=line, env=environment, capture_output=True, text=True, timeout=wait_s, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise _offline() from problem


def _offline() -> Offline:
    return Offline("The package index did not answer.", done=KEPT, hint=DIAGNOSE)


def _unfound(wanted: str | None, words: str) -> MlxqError:
    """Return the error that uv's words mean."""
    if re.search(r"Request failed|Failed to fetch|dns error|timed out|[Cc]onnection refused|error sending", words):
        return _offline()
    name, hint = (f"mlxq {wanted}", AGAIN) if wanted else ("mlxq", DIAGNOSE)
    if "Python" in words and "requires" in words.lower():
        release = f"{sys.version_info.major}.{sys.version_info.minor}"
        return NotFound(f"{name} does not run on Python {release}.", done=KEPT, hint=hint)
    if wanted and re.search(r"only mlxq|no version of mlxq==|mlxq==", words):
        return NotFound(f"The package index has no {name} that can be installed here.", done=KEPT, hint=AGAIN)
    return NotFound("The package index does not have mlxq.", done=KEPT, hint=hint)


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Make sure that a version's environment is here; return {"version", "python", "made"}.

    `request`: {"versions": the folder of all, "version", "requirement"}. Raises Damaged, DoesNotFit, NotFound, Offline,
    MlxqError.
    """
    folder = Path(request["versions"]) / request["version"]
    python = str(installed.python(folder))
    with environments.hold(folder) as staging:
        if whole(folder):
            return {"version": request["version"], "python": python, "made": False}
        _require_room(folder)
        try:
            _make(staging.folder, request["requirement"], report)
            _prove(staging.folder, request["version"])
        except MlxqError as problem:
            problem.done, problem.hint = KEPT, AGAIN
            raise
        staging.finish()
    return {"version": request["version"], "python": python, "made": True}


def _make(folder: Path, requirement: str, report: Report) -> None:
    """Install mlxq by the index's hashes, and what it needs by the lock that came with it. Raises as install.make."""
    own, whole = folder / "own.txt", folder / "lock.txt"
    own.write_text(requirement + "\n")
    install.make(folder, own, report)
    lock = next(folder.glob(f"venv/lib/python*/site-packages/{LOCK}"), None)
    if lock is None:
        raise Damaged("This version of mlxq does not say what it needs.")
    whole.write_text(lock.read_text(encoding="utf-8") + requirement + "\n")
    install.sync(folder, whole, report)


def _prove(folder: Path, version: str) -> None:
    """Have the new version say its own name, and note what is in its environment. Raises Damaged."""
    python = installed.python(folder)
    argv = [str(python), "-P", "-m", "mlxq", "--version"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LOOK_UP_S, env=_bare(folder))
    if ran.returncode or f"mlxq {version}" not in ran.stdout.splitlines():
        words = (ran.stderr or ran.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise Damaged(f"mlxq {version} does not start: {words[0]}.")
    proof = {"version": version, "content": content(folder), **installed.interpreter(folder)}
    replace_private(folder / PROOF, json.dumps(proof, indent=1))


def _bare(folder: Path) -> dict[str, str]:
    """Return an environment in which no other version is taken in its place."""
    return uv_environment(os.environ) | {"MLXQ_HOME": str(folder / "nowhere")}


def content(folder: Path) -> list[str]:
    """Return the packages in an environment as NAME==VERSION."""
    paths = [str(path) for path in folder.glob("venv/lib/python*/site-packages")]
    return sorted(f"{package.name}=={package.version}" for package in distributions(path=paths))


def whole(folder: Path) -> bool:
    """Return whether a version's environment is as it was made: its Python is there, and nothing else was installed."""
    try:
        proof = json.loads((folder / PROOF).read_bytes())
    except (OSError, ValueError):
        return False
    return os.access(installed.python(folder), os.X_OK) and proof.get("content") == content(folder)


def _require_room(folder: Path) -> None:
    """Raise DoesNotFit where the disk is too full."""
    parent = next(path for path in folder.parents if path.exists())
    free = free_space.available(parent)
    if free < NEED_BYTES:
        raise DoesNotFit(
            f"Another version of mlxq needs {units.files(NEED_BYTES)}, with what is kept free; {parent} has "
            f"{units.files(free)}.",
            done=KEPT,
            hint="mlxq prune",
        )


def unused(versions: Path, keep: Iterable[Version]) -> list[Path]:
    """Return the environments in MLXQ_HOME/versions that are none of `keep`."""
    names = {version.version for version in keep}
    folders = [path for path in versions.glob("[0-9]*") if path.is_dir() and not path.is_symlink()]
    return [path for path in folders if path.name not in names]


if __name__ == "__main__":
    answer(work)
