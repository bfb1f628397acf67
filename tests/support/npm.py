"""Programs of the registries, and somebody who runs them: in a home folder of their own, set up by `mlxq connect`.

They run behind a proxy that refuses, so that nothing but loopback is in reach.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxq.clients.client import Target
from mlxq.clients.table import CLIENTS

PACKAGES = {
    "claude": "@anthropic-ai/claude-code@2.1.197",
    "codex": "@openai/codex@0.171.0",
    "opencode": "opencode-ai@1.18.33",
    "qwen": "@qwen-code/qwen-code@0.24.4",
    "pi": "@mariozechner/pi-coding-agent@0.73.1",
    "cline": "cline@3.0.65",
    "openclaw": "openclaw@2026.9.6",
}
BINARIES = {"node": ("node", "24.22.3"), "goose": ("@aaif/goose-binary", "1.52.0")}
"""Programs of which npm carries a package for each system. OpenClaw runs with no older Node."""
PYPI = {"hermes": "hermes-agent==0.19.0", "aider": "aider-chat==0.86.2"}
EVERY = "MLXQ_TEST_PROGRAMS"
"""Set to `all`, it has the tests install programs that take hundreds of megabytes."""
LARGE = os.environ.get(EVERY) == "all"
"""Read on import: while a test runs, no variable of mlxq's is set."""
INSTALL_LIMIT_S = 240
RUN_LIMIT_S = 300
ALONE = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "NO_COLOR": "1",
    "CI": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "CLINE_SESSION_BACKEND_MODE": "local",
}


class NotInstalled(Exception):
    """The registry does not have a program."""


def installed(program: str, config: pytest.Config) -> str:
    """Return the path of a program from npm, kept in pytest's cache; skip where the registry does not have it."""
    assert config.cache
    try:
        return install(program, Path(str(config.cache.mkdir("npm"))))
    except NotInstalled as problem:
        pytest.skip(str(problem))


def install(program: str, root: Path, path: str | None = None) -> str:
    """Return the path of a program from npm, which is kept below `root`. Raises NotInstalled.

    `path`: the search path where it is not that of this process.
    """
    package = PACKAGES[program]
    folder = root / package.strip("@").replace("/", "--")
    made = folder / "node_modules" / ".bin" / program
    argv = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", str(folder), package]
    return _made(root, made, argv, package, {"PATH": path} if path else {})


def _made(root: Path, made: Path, argv: list[str], package: str, environment: Mapping[str, str]) -> str:
    """Return a path below `root`, which a command makes that was not run yet: once, for all tests. Raises NotInstalled.

    The path is there before the command has ended, and cannot be executed then.
    """
    with (root / f"{made.relative_to(root).parts[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _make(made, argv, package, environment)
    return str(made)


def _make(made: Path, argv: list[str], package: str, environment: Mapping[str, str]) -> None:
    if not shutil.which(argv[0]):
        raise NotInstalled(f"there is no {argv[0]} here")
    whole = {**os.environ, **environment}
    try:
        done = subprocess.run(argv, env=whole, capture_output=True, text=True, check=False, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{argv[0]} did not install {package} in {INSTALL_LIMIT_S} s") from None
    if done.returncode or not made.exists():
        raise NotInstalled(f"{argv[0]} does not install {package}: {done.stderr.strip()[-200:]}")


def large(program: str, config: pytest.Config) -> tuple[str, str]:
    """Return the path of a program that takes hundreds of megabytes, and the search path that it runs with.

    Skips unless MLXQ_TEST_PROGRAMS=all asks for them.
    """
    if not LARGE:
        pytest.skip(f"{EVERY}=all installs {program}")
    assert config.cache
    root = Path(str(config.cache.mkdir("npm")))
    try:
        if program in PYPI:
            return _from_pypi(program, root), os.environ["PATH"]
        if program in BINARIES:
            return str(_binary(program, root)), os.environ["PATH"]
        searched = f"{_binary('node', root).parent}{os.pathsep}{os.environ['PATH']}"
        return install(program, root, searched), searched
    except NotInstalled as problem:
        pytest.skip(str(problem))


def _from_pypi(program: str, root: Path) -> str:
    argv = ["uv", "tool", "install", "--python", sys.executable, PYPI[program]]
    kept = {"UV_TOOL_DIR": str(root / "tools"), "UV_TOOL_BIN_DIR": str(root / "bin")}
    return _made(root, root / "bin" / program, argv, PYPI[program], kept)


def _binary(program: str, root: Path) -> Path:
    """Return the path of a program that npm carries for each system by itself. Raises NotInstalled."""
    name, version = BINARIES[program]
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    package = f"{name}-{sys.platform}-{machine}"
    folder = root / f"{program}-{version}"
    argv = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"{package}@{version}"]
    return Path(_made(root, folder / "node_modules" / package / "bin" / program, argv, package, {}))


@dataclass
class Person:
    """Somebody with a home folder, a folder to work in, and a client that `mlxq connect` has set up."""

    home: Path
    work: Path

    @classmethod
    def make(cls, folder: Path) -> Person:
        """Make the two folders; the one to work in is a Git repository, as agents want it."""
        home, work = folder / "home", folder / "work"
        home.mkdir()
        subprocess.run(["git", "init", "-q", str(work)], check=True)
        return cls(home, work)

    def environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, **ALONE, "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config")}

    def connect(self, client: str, target: Target) -> None:
        entry = CLIENTS[client]
        path = entry.path(self.environment(), self.home)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(entry.write("", target))

    def run(self, *argv: str, typed: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.work,
            env={**self.environment(), **more},
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_LIMIT_S,
        )
