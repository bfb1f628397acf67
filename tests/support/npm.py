"""Programs from npm, and somebody who runs them: in a home folder of their own, set up by `mlxq connect`'s own words.

They run behind a proxy that refuses, so that nothing but loopback is in reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
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
}
INSTALL_LIMIT_S = 240
RUN_LIMIT_S = 120
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


def install(program: str, root: Path) -> str:
    """Return the path of a program from npm, which is kept below `root`. Raises NotInstalled."""
    package = PACKAGES[program]
    folder = root / package.strip("@").replace("/", "--")
    path = folder / "node_modules" / ".bin" / program
    if path.exists():
        return str(path)
    if not shutil.which("npm"):
        raise NotInstalled("there is no npm here")
    argv = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", str(folder), package]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"npm did not install {package} in {INSTALL_LIMIT_S} s") from None
    if done.returncode or not path.exists():
        raise NotInstalled(f"npm does not install {package}: {done.stderr.strip()[-200:]}")
    return str(path)


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
