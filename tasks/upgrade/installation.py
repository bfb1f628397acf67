"""Where this mlxq is installed, and which version is used in its place.

Nothing of an installation is ever changed, so it does not matter who made it or whether it can be written: a version
that an upgrade brought is an environment of its own in MLXQ_HOME/versions, and a link there, named for the version
that was installed, leads to it. The installed program finds the link when it starts and becomes that version
(mlxq/__main__.py). So the PATH, the autostart entry and the completions stay as they are; the switch is one rename; and
an installation that its user changed to another version is used as it is, as no link bears its name.
"""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path

from state.classes import dataclass
from state.errors import UsageProblem
from state.paths import Home
from tasks.engines.installed import mlxq_version
from tasks.upgrade import record as records
from tasks.upgrade.record import Record, Version

LINK = "from-"
CACHES = frozenset({"archive-v0", "environments-v2"})
"""Folders of uv's cache in which `uvx` runs a program."""
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


class InstallMethod(StrEnum):
    """How an mlxq is installed."""

    CHECKOUT = "checkout"
    UVX = "uvx"
    SYSTEM = "system"
    UV_TOOL = "uv tool"
    PIPX = "pipx"
    VENV = "venv"


UPGRADED = {
    InstallMethod.CHECKOUT: "git pull && uv sync",
    InstallMethod.UVX: "uvx mlxq@latest",
    InstallMethod.SYSTEM: "uv tool install mlxq",
}
"""The command that upgrades an installation which mlxq does not upgrade itself."""
REMOVED = {
    InstallMethod.UVX: "uv cache clean mlxq",
    InstallMethod.SYSTEM: "python -m pip uninstall mlxq",
    InstallMethod.UV_TOOL: "uv tool uninstall mlxq",
    InstallMethod.PIPX: "pipx uninstall mlxq",
    InstallMethod.VENV: "uv pip uninstall --python {prefix} mlxq",
}
"""The command that removes an installation. It deletes no folder: other packages may be in a plain environment."""


@dataclass(frozen=True)
class InstalledProgram:
    """An mlxq that was installed by other tools."""

    method: InstallMethod
    prefix: Path

    @property
    def removal(self) -> str | None:
        """Return the command that removes it; None for a checkout, which has its user's work in it."""
        command = REMOVED.get(self.method)
        return command.format(prefix=shlex.quote(str(self.prefix))) if command else None


def current(prefix: Path | None = None, project: Path = PROJECT) -> InstalledProgram:
    """Return how the environment `prefix` is made, by the marks that its maker left; by default this process's."""
    prefix = prefix or Path(sys.prefix)
    if project.exists():
        return InstalledProgram(InstallMethod.CHECKOUT, project.parent)
    if CACHES & set(prefix.parts):
        return InstalledProgram(InstallMethod.UVX, prefix)
    if not (prefix / "pyvenv.cfg").exists():
        return InstalledProgram(InstallMethod.SYSTEM, prefix)
    marks = {"uv-receipt.toml": InstallMethod.UV_TOOL, "pipx_metadata.json": InstallMethod.PIPX}
    return InstalledProgram(
        next((marks[name] for name in marks if (prefix / name).exists()), InstallMethod.VENV), prefix
    )


def origin(home: Home) -> InstalledProgram:
    """Return the installation that the user's PATH leads to; it is not the running one once it was upgraded."""
    record = records.read(home)
    if is_own(home) and record:
        return current(Path(record.origin).parents[1])
    return current()


def require_upgradable() -> None:
    """Raise UsageProblem with the command to run where other tools upgrade this mlxq."""
    method = current().method
    if method == InstallMethod.CHECKOUT:
        raise UsageProblem("This mlxq runs from a checkout, which its own tools upgrade.", hint=UPGRADED[method])
    if method == InstallMethod.UVX:
        raise UsageProblem("This mlxq runs from uv's cache, which uvx upgrades.", hint=UPGRADED[method])
    if method == InstallMethod.SYSTEM:
        raise UsageProblem(
            "This mlxq is among the packages of the system's Python, which its own tools upgrade.",
            hint=UPGRADED[method],
        )


def is_own(home: Home) -> bool:
    """Return whether this process runs from an environment that an upgrade made."""
    return Path(sys.prefix).resolve().is_relative_to(home.versions.resolve())


def folder(home: Home, version: str) -> Path:
    """Return where an upgrade puts a version."""
    return home.versions / version


def program(home: Home) -> Path:
    """Return the program to start mlxq by in years to come: of the installation, and not of a version in its place."""
    record = records.read(home)
    own = Path(sys.executable).with_name("mlxq")
    if record and is_own(home) and os.access(record.origin, os.X_OK):
        return Path(record.origin)
    return own


def links(home: Home) -> list[Path]:
    """Return the links that decide what the installations of this home become."""
    if is_own(home):
        return sorted(link for link in home.versions.glob(f"{LINK}*") if link.is_symlink())
    return [home.versions / f"{LINK}{mlxq_version()}"]


def lead_to(home: Home, version: str, python: str) -> None:
    """Have this home's installations become a version when they start, by one rename. Raises OSError.

    Where `python` is not that of an environment in MLXQ_HOME/versions, it is the installation itself: no link leads on.
    """
    own = Path(python).is_relative_to(home.versions)
    for link in links(home):
        if not own:
            link.unlink(missing_ok=True)
            continue
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(version)
        temporary.replace(link)


def chosen(home: Home) -> str:
    """Return the interpreter of the version that is used in this home; a Python that went away is not.

    A process of the version that is not used any more asks too: a command that follows the way back, or an upgrade.
    """
    record = records.read(home)
    if record and mlxq_version() in {record.before.version, record.after.version}:
        python = in_use(home, record).python
        return python if os.access(python, os.X_OK) else sys.executable
    return sys.executable


def in_use(home: Home, record: Record) -> Version:
    """Return the version that the links lead to while `record` is not settled."""
    targets = {str(link.readlink()) for link in home.versions.glob(f"{LINK}*") if link.is_symlink()}
    return record.after if record.after.version in targets else record.before
