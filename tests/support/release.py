"""Releases of mlxq for tests: the checkout's wheel under other versions, a package index that has them, and a user.

The libraries are lent: each release needs one package, whose .pth file leads to those of the checkout. Their engine is
the scripted one, unless the real one is asked for. All else is real: uv, its tool folder, environments, hashes,
workers, gateways.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support import loopback, package_index
from support.package_index import PackageIndex
from support.ports import free_port, free_run

from state import files, secrets
from state.paths import Home
from tasks.system import process
from tasks.upgrade import record as records
from tasks.upgrade.packages import LOCK
from tasks.upgrade.record import Phase, Record

ROOT = Path(__file__).parents[2]
ENGINE = Path(__file__).with_name("scripted_engine.py")
SERVED = f"""
argv = lambda served, at: [{sys.executable!r}, {str(ENGINE)!r}, str(served.engine.port), served.engine.name]
"""
MIGRATION = '''

@schema()
def m999_color(db: Database) -> None:
    """Add what an older version does not know."""
    for table in ("facts", "services", "jobs", "residency", "tiers"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN color TEXT")
    db.execute("CREATE TABLE colors (name TEXT PRIMARY KEY) STRICT")


def migrate('''
_PROVEN = """
_tried = work
def work(request, report):
    if os.path.exists(os.path.join(request["home"], "proven")):
        return {"schema": SCHEMA_VERSION, "answer": "", "seconds": 0.0}
    return _tried(request, report)


if __name__ == "__main__":"""
Edit = Callable[[str], str]
PASSES_OVER_FIRST_LIGHT: Mapping[str, Edit] = {
    "tasks/upgrade/trial.py": lambda text: text.replace('if __name__ == "__main__":', _PROVEN)
}
"""Of a release: no trial in a home that has a file `proven`; tests of what comes after a trial need it once."""


def build(folder: Path) -> Path:
    """Build the checkout's wheel."""
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def lent(folder: Path) -> Path:
    """Make the package that lends the checkout's libraries; a .pth file found by it is not read."""
    return package_index.wheel(folder, "lent", "1.0", {"lent.pth": sysconfig.get_path("purelib") + "\n"})


def release(
    wheel: Path,
    folder: Path,
    version: str,
    edits: Mapping[str, Edit] | None = None,
    *,
    newer_schema: bool = False,
    scripted: bool = True,
) -> Path:
    """Make a release of mlxq from the checkout's wheel. `edits`: path in the wheel -> what makes its new content.

    `scripted`: its engine is the scripted one, and not vllm-mlx.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, old, rest = wheel.name.split("-", 2)
    with zipfile.ZipFile(wheel) as archive:
        content = {
            path.replace(f"{name}-{old}.", f"{name}-{version}."): archive.read(path) for path in archive.namelist()
        }
    about = f"{name}-{version}.dist-info"
    content.pop(f"{about}/RECORD")
    changed: dict[str, Edit] = {
        f"{about}/METADATA": lambda text: _needs_lent(text).replace(f"\nVersion: {old}\n", f"\nVersion: {version}\n"),
        "mlxq/__init__.py": lambda text: text.replace(f'__version__ = "{old}"', f'__version__ = "{version}"'),
        "tasks/engines/serving.py": lambda text: text + (SERVED if scripted else ""),
        LOCK: lambda _: package_index.locked(lent(folder)),
    }
    if newer_schema:
        changed["state/migrations.py"] = lambda text: text.replace("\n\ndef migrate(", MIGRATION)
        changed["state/db.py"] = lambda text: re.sub(
            r"^SCHEMA_VERSION = (\d+)", lambda match: f"SCHEMA_VERSION = {int(match[1]) + 1}", text, flags=re.MULTILINE
        )
    for path, edit in [*changed.items(), *(edits or {}).items()]:
        content[path] = edit(content[path].decode()).encode()
    return package_index.zipped(folder / f"{name}-{version}-{rest}", content, about)


def _needs_lent(metadata: str) -> str:
    """Return the wheel's metadata with one dependency."""
    head, blank, body = metadata.partition("\n\n")
    lines = [line for line in head.splitlines() if not line.startswith("Requires-Dist: ")]
    return "\n".join([*lines, "Requires-Dist: lent"]) + blank + body


@dataclass
class User:
    """Someone who installed mlxq as a tool of uv, and the home of it."""

    folder: Path
    index: PackageIndex
    models: Path
    extra: dict[str, str] = field(default_factory=dict)
    """Variables more."""
    prefix: Sequence[str] = ()
    """The words before each command, such as those that enter a network namespace."""

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "h")
        self.ports = (free_port(), free_run(10))

    @property
    def environment(self) -> dict[str, str]:
        base = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return (
            base
            | self.extra
            | {
                "MLXQ_HOME": str(self.home.root),
                "UV_TOOL_DIR": str(self.folder / "tools"),
                "UV_TOOL_BIN_DIR": str(self.folder / "bin"),
                "UV_DEFAULT_INDEX": self.index.url,
                "UV_CACHE_DIR": str(self.folder / "cache"),
                "UV_NO_CONFIG": "1",
            }
        )

    @contextmanager
    def having(self, variables: Mapping[str, str]) -> Generator[None]:
        """Run commands with these variables, too, meanwhile."""
        before = dict(self.extra)
        self.extra.update(variables)
        try:
            yield
        finally:
            self.extra.clear()
            self.extra.update(before)

    @property
    def tool(self) -> Path:
        """Return the environment that uv made for the tool."""
        return self.folder / "tools" / "mlxq"

    def install(self, version: str, *options: str) -> None:
        """Install mlxq as a user does, without the internet."""
        argv = ["uv", "tool", "install", "--quiet", *options, "--python", sys.executable, f"mlxq=={version}"]
        subprocess.run(argv, env=self.environment, check=True)

    def run(
        self, *words: str, check: bool = True, timeout: float = 200, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run the program on the user's PATH. `text`: what it reads."""
        ran = subprocess.run(
            [*self.prefix, self.folder / "bin" / "mlxq", *words],
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert not check or ran.returncode == 0, f"{words}: {ran.stdout}\n{ran.stderr}\n{self.logs()}"
        return ran

    def set_up(self) -> None:
        """Have the built-in model served."""
        gateway, tiers = self.ports
        for name, value in (("litellm-port", gateway), ("tier-port-base", tiers), ("page-port", 0)):
            self.run("config", "set", name, str(value))
        self.run("config", "set", "model-dir", str(self.models))
        self.run("setup", "--accept-defaults", "--model", "smollm2-135m")

    def version(self) -> str:
        """Return the version that the user's program is."""
        return self.run("--version").stdout.split()[1]

    def worker(self) -> str | None:
        """Return the version of the worker that runs."""
        if not files.locked(self.home.worker_lock):
            return None
        try:
            command = Path(f"/proc/{int(self.home.worker_lock.read_text())}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):  # it has ended, or has only just taken the lock
            return None
        python = Path(os.fsdecode(command[0]))
        return python.parents[2].name if python.is_relative_to(self.home.versions) else "installed"

    def answers(self) -> int:
        """Return the status of one chat."""
        key = secrets.read(self.home.secrets)[secrets.MASTER]
        body = {"model": "standard", "messages": [{"role": "user", "content": "say hi"}]}
        url = f"http://127.0.0.1:{self.ports[0]}/v1/chat/completions"
        try:
            return loopback.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code
        except httpx.TransportError:
            return 0

    def record(self) -> Record | None:
        return records.read(self.home)

    def settled(self) -> Phase | None:
        record = self.record()
        return record.phase if record and not record.unsettled else None

    def jobs(self, kind: str) -> list[dict[str, Any]]:
        """Return the jobs of a kind as the program prints them."""
        return json.loads(self.run("jobs", "--kind", kind, "--json").stdout)["jobs"]

    def logs(self) -> str:
        """Return the end of each log, and the tracebacks in it."""
        return "\n".join(f"== {log.name}\n{_telling(log.read_text())}" for log in self.home.logs.glob("*.log"))

    def kill_worker(self) -> None:
        """Kill the worker, if one runs; the next command starts another."""
        if files.locked(self.home.worker_lock):
            os.kill(int(self.home.worker_lock.read_text()), signal.SIGKILL)
            files.await_unlocked(self.home.worker_lock)

    def close(self) -> None:
        """End whatever runs in this home."""
        self.kill_worker()  # first: it would start again what is ended
        while identities := _processes(str(self.folder)):
            for identity in identities:
                process.stop(identity, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _telling(log: str) -> str:
    tracebacks = "\n".join(f"Traceback{part[:4000]}" for part in log.split("Traceback")[1:4])
    return f"{tracebacks}\n…\n{log[-3000:]}"


def _processes(folder: str) -> list[process.Identity]:
    """Return the processes whose MLXQ_HOME is below a folder."""
    found: list[process.Identity] = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            marked = f"MLXQ_HOME={folder}".encode() in path.read_bytes()
        except OSError:
            continue
        identity = process.identify(int(path.parent.name)) if marked else None
        if identity and identity.pid != os.getpid():
            found.append(identity)
    return found
