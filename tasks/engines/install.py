"""The child that makes an engine's environment and proves it: uv installs by a lock that ships with mlxq.

Every file is held to a hash, nothing is built, and the environment counts only after the engine in it has answered.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog import units
from catalog.engines import entry
from state.errors import Damaged, DoesNotFit, EngineFailed, MlxqError, NotFound, Offline
from tasks.engines import benchmark, installed, reuse
from tasks.plan.environment import KEPT
from tasks.supervision import probe
from tasks.system import free_space
from tasks.system.child import Report, answer

LOCKS = Path(__file__).with_name("locks")
OF_UV = re.compile(
    r"(?:UV_(?:INDEX|DEFAULT_INDEX|EXTRA_INDEX|CACHE_DIR|NATIVE_TLS|SYSTEM_CERTS)\w*|\w*_?PROXY)", re.IGNORECASE
)
"""The settings of uv and of the network that are the user's to make."""
FLOOR_BYTES = 1_000_000_000
"""What is left free on the disk."""
LEAST_REUSE = 0.9
"""Share of a first turn that an engine must not read again on the built-in model, which every engine reuses."""
HASH = re.compile(r"[Hh]ash mismatch|hashes")
FULL = re.compile(r"No space left on device")
AWAY = re.compile(r"dns error|error sending request|[Cc]onnection refused|timed out|Failed to fetch|Failed to download")
NO_BUILD = re.compile(r"no usable wheels|no wheels|unsatisfiable|No solution found|no matching")
KEPT_ALL = "The engine was not installed; what ran before runs on."


def lock(name: str, version: str) -> Path:
    """Return the lock of a version. Raises NotFound with the versions there are."""
    path = LOCKS / f"{name}-{version}.txt"
    if not re.fullmatch(r"[\w.]+", version) or not path.is_file():
        raise NotFound(
            f"mlxq {installed.mlxq_version()} installs {', '.join(versions(name)) or 'no version'} of {name}, "
            f"not {version}.",
            hint="mlxq engine list",
        )
    return path


def versions(name: str) -> list[str]:
    """Return the versions that this mlxq installs, the newest last."""
    numbers = [path.stem.removeprefix(f"{name}-") for path in LOCKS.glob(f"{name}-*.txt")]
    return sorted(numbers, key=lambda number: [int(part) if part.isdigit() else 0 for part in number.split(".")])


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Make the environment of one version and prove it; return its proof. `request` is made by tasks/engine.py."""
    folder = Path(request["folder"])
    began = time.monotonic()
    check_room(folder, request["engine"])
    make(folder, Path(request["lock"]), report)
    installed_s = time.monotonic() - began
    report({"phase": "proving it on the built-in model"})
    return {"installed_s": round(installed_s, 1), "size_bytes": size(folder), **prove(request)}


def make(folder: Path, lock: Path, report: Report) -> None:
    """Make the environment that `lock` says in `folder`, in place of what is there. Raises as `failure` tells."""
    report({"phase": "making its environment"})
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    _uv(["venv", "--python", sys.executable, "--no-project", str(folder / "venv")])
    report({"phase": "fetching its packages"})
    _uv([*SYNC, "--python", str(installed.python(folder)), str(lock)])


SYNC = ("pip", "sync", "--require-hashes", "--no-build", "--strict")


def check_room(folder: Path, engine: str) -> None:
    """Make sure the environment fits on the disk. Raises DoesNotFit."""
    package = entry(engine)
    need = (package.installed_mb + package.download_mb) * 1_000_000 + FLOOR_BYTES
    parent = next(path for path in folder.parents if path.exists())
    free = free_space.available(parent)
    if free < need:
        raise DoesNotFit(
            f"{engine} needs {units.files(need)}, with what is kept free; {parent} has {units.files(free)}.",
            done="Nothing was fetched.",
            hint="mlxq prune",
        )


def size(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _uv(words: list[str]) -> None:
    """Run uv. Raises Damaged, DoesNotFit, Offline, NotFound, EngineFailed."""
    from uv import find_uv_bin

    done = subprocess.run(
        [find_uv_bin(), *words, "--no-config", "--quiet"],
        env=uv_environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise failure(done.stderr)


def uv_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return what uv gets: where packages come from is the user's to say, what is installed is the lock's."""
    allowed = {name: value for name, value in base.items() if name in KEPT or OF_UV.fullmatch(name)}
    certificates = {name: base[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in base}
    return allowed | certificates | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}


def failure(words: str) -> MlxqError:
    """Return the error that uv's last words tell of."""
    if HASH.search(words):
        return Damaged("A package has another hash than mlxq's lock says.", done=KEPT_ALL, hint="mlxq engine list")
    if FULL.search(words):
        return DoesNotFit("The disk is full, and the engine is not whole.", done=KEPT_ALL, hint="mlxq prune")
    if AWAY.search(words):
        return Offline("The package index did not answer.", done=KEPT_ALL, hint="mlxq engine list")
    if NO_BUILD.search(words):
        return NotFound("A package has no build for this system.", done=KEPT_ALL, hint="mlxq engine list")
    last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "it said nothing")
    return EngineFailed(f"uv could not install the engine: {last[:300]}", done=KEPT_ALL, hint="mlxq engine list")


def prove(request: Mapping[str, Any]) -> dict[str, Any]:
    """Serve the built-in model with the fresh engine: it must answer, reuse a prompt, and end when told.

    Returns {"start_s", "first_token_s", "resident_bytes", "reused", "stop_s", "mlx"}. Raises EngineFailed.
    """
    smoke = request["smoke"]
    began = time.monotonic()
    with benchmark.own_engine(smoke) as pid:
        start_s = time.monotonic() - began
        token_s = probe.one_token(smoke["port"], smoke["key"], smoke["name"], benchmark.TOKEN_S)
        reused = reuse.share(smoke["port"], smoke["key"], smoke["name"], smoke["release"])
        resident = benchmark.resident(pid)
        ending = time.monotonic()
    stop_s = time.monotonic() - ending
    if reused < LEAST_REUSE:
        raise EngineFailed(
            f"{smoke['release']} read {1 - reused:.0%} of a prompt again.", done="It was not taken into use."
        )
    times = {"start_s": start_s, "first_token_s": token_s, "stop_s": stop_s}
    return {
        **{name: round(seconds, 2) for name, seconds in times.items()},
        "resident_bytes": resident,
        "reused": reused,
        "mlx": _mlx(request),
    }


def _mlx(request: Mapping[str, Any]) -> str:
    """Return the release of MLX in the fresh environment, by its lock."""
    text = Path(request["lock"]).read_text(encoding="utf-8")
    match = re.search(r"^mlx==(\S+)", text, re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    answer(work)
