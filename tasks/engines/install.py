"""The child that makes an engine's environment and proves it: uv installs by a lock that ships with mlxq.

Every file is held to a hash, nothing is built, and the environment gets its name only after the engine in it has
answered (tasks/engines/environments.py).
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from catalog import units
from catalog.engines import entry
from state import files
from state.errors import Damaged, DoesNotFit, EngineFailed, EngineUnproven, MlxqError, NotFound, Offline
from tasks.engines import benchmark, environments, installed, reuse
from tasks.plan.environment import KEPT
from tasks.system import free_space
from tasks.system.child import Report, answer

LOCKS = Path(__file__).with_name("locks")
OF_UV = re.compile(
    r"(?:UV_(?:INDEX|DEFAULT_INDEX|EXTRA_INDEX|FIND_LINKS|CACHE_DIR|HTTP_TIMEOUT|NATIVE_TLS|SYSTEM_CERTS)\w*|\w*_?PROXY)",
    re.IGNORECASE,
)
"""The settings of uv and of the network that are the user's to make."""
FLOOR_BYTES = 1_000_000_000
"""What is left free on the disk."""
FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_BYTES = 16_000_000
"""A disk with less is full: an engine that fails on it says nothing about the engine."""
PYPI = "https://pypi.org/simple"
HOST = re.compile(r"://(?:[^/@]*@)?([^/?#]+)")
"""The host and port of an address."""
LEAST_REUSE = 0.9
"""Share of a first turn that an engine must not read again on the built-in model, which every engine reuses."""
FIRST_TURN_TOKENS = 160
"""Of the proof: vllm-mlx keeps no prompt under 128, and MLX's CPU backend reads ten tokens a second of this model."""
SYNC = ("pip", "sync", "--require-hashes", "--no-build", "--strict")
LOOK_UP = ("pip", "compile", "--no-deps", "--no-build", "--quiet", "--no-config", "-")
BEGUN = re.compile(r"^Downloading (\S+) \(([\d.]+)([KMG])iB\)")
ENDED = re.compile(r"^ Downloaded (\S+)")
"""What uv says of each download over 1 MiB."""
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
PACKAGE = re.compile(r"[A-Za-z][\w.-]*==\d[\w.]*\w")
KEPT_ALL = "The engine was not installed; what was running keeps running."


def lock(engines: Path, name: str, version: str) -> Path:
    """Return the lock of a version: one that ships with mlxq, or the user's own in `engines`/locks.

    Raises NotFound with the versions there are.
    """
    candidates = [folder / f"{name}-{version}.txt" for folder in (LOCKS, engines / "locks")]
    lock = next(filter(Path.is_file, candidates), None)
    if not re.fullmatch(r"[\w.]+", version) or lock is None:
        raise NotFound(
            f"mlxq {installed.mlxq_version()} installs {', '.join(versions(engines, name)) or 'no version'} of {name}, "
            f"not {version}.",
            hint="mlxq engine list",
        )
    return lock


def versions(engines: Path, name: str) -> list[str]:
    """Return the versions that can be installed, the newest last."""
    locks = [*LOCKS.glob(f"{name}-*.txt"), *(engines / "locks").glob(f"{name}-*.txt")]
    return sorted({path.stem.removeprefix(f"{name}-") for path in locks}, key=installed.order)


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Make the environment of one version and prove it; return its proof. `request` is made by tasks/engine.py.

    With "proven" in it a version that is here is asked for two turns, and {"reused"} is returned.
    """
    if request["proven"]:
        report({"phase": "asking a second turn"})
        with benchmark.own_engine(request["smoke"]):
            return {"reused": _reused(request["smoke"])}
    folder = Path(request["folder"])
    with _disk_watched(folder), environments.hold(folder) as staging:
        began = time.monotonic()
        check_room(folder, request["engine"])
        fetched = _made(request, staging.folder, report)
        installed_s = time.monotonic() - began
        report({"phase": "proving it on the built-in model"})
        proof = {
            "engine": request["engine"],
            "version": request["version"],
            "at": time.time(),
            **installed.interpreter(staging.folder),
            "installed_s": round(installed_s, 1),
            "downloaded_bytes": fetched,
            **prove(request),
        }
        proof["size_bytes"] = files.size(staging.folder)  # with the bytecode that its first start wrote
        installed.write_proof(staging.folder, proof)
        staging.finish()
    return proof


@contextmanager
def _disk_watched(folder: Path) -> Generator[None]:
    """Raise DoesNotFit where the disk became full, in place of what came of that: no room, or an engine that failed."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        raise _full() from problem
    except EngineUnproven as problem:
        if free_space.available(_existing(folder)) >= LEAST_BYTES:
            raise
        raise _full() from problem


def _made(request: Mapping[str, Any], folder: Path, report: Report) -> int:
    """Make an environment as `make` does; an index that is away has the same command tried again."""
    try:
        return make(folder, Path(request["lock"]), report)
    except Offline as problem:
        hint = f"mlxq engine install {request['engine']}"
        raise Offline(problem.message, done=problem.done, hint=hint) from problem


def make(folder: Path, lock: Path, report: Report) -> int:
    """Make the environment that `lock` says in the folder `folder`; return the bytes that came from the index.

    Downloads under 1 MiB each are not counted. Raises as `failure` says.
    """
    report({"phase": "making its environment"})
    _uv(["venv", "--python", sys.executable, "--no-project", "--relocatable", str(folder / "venv")])
    return sync(folder, lock, report)


def sync(folder: Path, lock: Path, report: Report) -> int:
    """Bring the environment in `folder` to what `lock` says; return and raise as `make` does."""
    report({"phase": "fetching its packages"})
    downloads = Downloads(report)
    _uv([*SYNC, "--python", str(installed.python(folder)), str(lock)], downloads.read)
    return downloads.done


class Downloads:
    """What uv has downloaded, by its own words: it names each large file when it begins and when it has it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sizes: dict[str, int] = {}
        self._ended: set[str] = set()

    @property
    def done(self) -> int:
        """Bytes that are here."""
        return sum(self._sizes[name] for name in self._ended)

    def read(self, line: str) -> None:
        """Take one line of uv's, and report how far it is."""
        if begun := BEGUN.match(line):
            self._sizes[begun[1]] = int(float(begun[2]) * UNITS[begun[3]])
        elif (ended := ENDED.match(line)) and ended[1] in self._sizes:
            self._ended.add(ended[1])
        else:
            return
        total = sum(self._sizes.values())
        self._report({"phase": "fetching its packages", "done": self.done, "total": total, "unit": "bytes"})


def check_room(folder: Path, engine: str) -> None:
    """Make sure the environment of an engine fits on the disk. Raises DoesNotFit."""
    package = entry(engine)
    require_room(folder, engine, (package.installed_mb + package.download_mb) * 1_000_000)


def require_room(folder: Path, subject: str, size_bytes: int) -> None:
    """Raise DoesNotFit where an environment of this size does not fit on the disk."""
    need = size_bytes + FLOOR_BYTES
    parent = _existing(folder)
    free = free_space.available(parent)
    if free < need:
        raise DoesNotFit(
            f"{subject} needs {units.files(need)}, with what is kept free; {parent} has {units.files(free)}.",
            done="Nothing was fetched.",
            hint="mlxq prune",
        )


def _existing(folder: Path) -> Path:
    """Return the closest folder above that exists."""
    return next(path for path in folder.parents if path.exists())


def index_name() -> str:
    """Return the host of the package index, without what a user's address may hold of credentials."""
    environment = uv_environment(os.environ)
    address = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or PYPI
    host = HOST.search(address)
    return host[1] if host else "of UV_DEFAULT_INDEX"


def index_has(engine: str, wait_s: float) -> bool:
    """Return whether the package index answers within `wait_s` seconds, and has the engine; nothing is fetched."""
    from uv import find_uv_bin

    line = f"{entry(engine).package}=={entry(engine).version}\n".encode()
    environment = uv_environment(os.environ) | {"UV_HTTP_TIMEOUT": str(int(wait_s)), "UV_HTTP_RETRIES": "0"}
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [find_uv_bin(), *LOOK_UP], input=line, env=environment, capture_output=True, timeout=2 * wait_s, check=False
        )
        return done.returncode == 0
    return False


def _uv(words: list[str], read: Callable[[str], None] = lambda _: None) -> None:
    """Run uv, and have `read` take each line it writes. Raises as `failure` says."""
    from uv import find_uv_bin

    lines: list[str] = []
    with subprocess.Popen(
        [find_uv_bin(), *words, "--no-config"],
        env=uv_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as uv:
        assert uv.stderr
        for line in uv.stderr:
            lines.append(line)
            read(line)
    if uv.returncode:
        raise failure("".join(lines))


def uv_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return what uv gets: where packages come from is the user's to say, what is installed is the lock's."""
    own = {name: value for name, value in base.items() if name in KEPT or OF_UV.fullmatch(name)}
    certificates = {name: base[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in base}
    index = {"UV_DEFAULT_INDEX": base["PIP_INDEX_URL"]} if "PIP_INDEX_URL" in base else {}
    return index | own | certificates | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def failure(words: str) -> MlxqError:
    """Return the error that uv's words mean; its own last line where they are unknown."""
    named, status = PACKAGE.search(words), STATUS.search(words)
    package = named[0] if named else "A package of the engine"
    make = next((make for pattern, make in FAILURES if pattern.search(words)), None)
    if make:
        return make(package, status[1] if status else "")
    last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "it said nothing")
    return EngineFailed(f"uv could not install the engine: {last[:300]}", done=KEPT_ALL, hint="mlxq engine list")


def _full() -> DoesNotFit:
    return DoesNotFit("The disk became full before the engine was complete.", done=KEPT_ALL, hint="mlxq prune")


STATUS = re.compile(r"(40[13]) (?:Forbidden|Unauthorized)")
FAILURES: Sequence[tuple[re.Pattern[str], Callable[[str, str], MlxqError]]] = (
    (
        re.compile(r"[Hh]ash mismatch"),
        lambda package, _: Damaged(
            f"{package} has another hash than mlxq's lock says.", done=KEPT_ALL, hint="mlxq engine list"
        ),
    ),
    (
        re.compile(r"No space left on device"),
        lambda _package, _status: _full(),
    ),
    (
        STATUS,
        lambda package, status: NotFound(
            f"The package index {index_name()} refused {package} (HTTP {status}).",
            done=KEPT_ALL,
            hint="mlxq engine list",
        ),
    ),
    (
        re.compile(r"was not found in the package registry|there is no version of|404 Not Found"),
        lambda package, _: NotFound(
            f"The package index {index_name()} does not have {package}.", done=KEPT_ALL, hint="mlxq engine list"
        ),
    ),
    (
        re.compile(r"no usable wheels|no wheels|only has wheels"),
        lambda package, _: NotFound(f"{package} has no build for this system.", done=KEPT_ALL, hint="mlxq engine list"),
    ),
    (
        re.compile(r"Request failed|Failed to fetch|Failed to download|dns error|timed out|[Cc]onnection refused"),
        lambda _package, _status: Offline(
            f"The package index {index_name()} did not answer, or not to the end.",
            done=KEPT_ALL,
            hint="mlxq engine list",
        ),
    ),
)
"""What uv 0.13 says, collected from an index that lies; the first that applies."""


def prove(request: Mapping[str, Any]) -> dict[str, Any]:
    """Serve the built-in model with the fresh engine: it must answer, reuse a prompt, and end when told.

    Without "reuse" in `request` two turns are not asked, and "reused" is None: that is measured later.
    Returns {"start_s", "first_token_s", "resident_bytes", "reused", "stop_s", "mlx"}. Raises EngineUnproven.
    """
    smoke = request["smoke"]
    try:
        return _served(smoke, reuses=request["reuse"]) | {"mlx": _mlx(request)}
    except EngineFailed as problem:
        raise EngineUnproven(
            f"{smoke['release']} failed its smoke test: {problem.message}",
            done="It is not used; what was running keeps running.",
            hint=f"tail {smoke['log']}",
        ) from problem


def _served(smoke: dict[str, Any], *, reuses: bool) -> dict[str, Any]:
    """Return what the smoke test measured. Raises EngineFailed."""
    with benchmark.own_engine(smoke) as engine:
        reused = _reused(smoke) if reuses else None
        resident = benchmark.resident(engine.pid)
        ending = time.monotonic()
    stop_s = time.monotonic() - ending
    if reused is not None and reused < LEAST_REUSE:
        raise EngineFailed(f"it read {1 - reused:.0%} of a prompt again.")
    times = {"start_s": engine.start_s, "first_token_s": engine.first_token_s, "stop_s": stop_s}
    return {
        **{name: round(seconds, 2) for name, seconds in times.items()},
        "resident_bytes": resident,
        "reused": reused,
    }


def _reused(smoke: Mapping[str, Any]) -> float:
    """Return the share of a prompt that the engine did not read again. Raises EngineFailed."""
    return reuse.share(
        smoke["port"],
        smoke["key"],
        smoke["name"],
        smoke["release"],
        tokens=FIRST_TURN_TOKENS,
        answer_s=smoke["token_limit_s"],
    )


def _mlx(request: Mapping[str, Any]) -> str:
    """Return the release of MLX in the fresh environment, by its lock."""
    text = Path(request["lock"]).read_text(encoding="utf-8")
    match = re.search(r"^mlx==(\S+)", text, re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    answer(work)
