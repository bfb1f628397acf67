"""Say which pins of pyproject.toml are behind the package index, and who holds them: `just pins`."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[[\w,.-]+\])?\s*([^;]*)")
PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
NAMED = "vllm-mlx"
"""Beside what mlxq imports."""


@dataclass(frozen=True)
class Pin:
    """What a package may be, is, and could be."""

    name: str
    allowed: str
    """The specifier of pyproject.toml."""
    locked: str
    newest: str

    @property
    def behind(self) -> bool:
        return order(self.newest) > order(self.locked)


def order(version: str) -> list[int]:
    """Return the key by which releases are sorted."""
    return [int(part) for part in re.findall(r"\d+", version)]


def requirements(project: dict[str, Any]) -> dict[str, str]:
    """Return name -> specifier of what mlxq imports, and of its engine."""
    lines = [*project["project"]["dependencies"], *project["dependency-groups"]["engine"]]
    pairs = {match[1].lower(): match[2].strip() for line in lines if (match := REQUIREMENT.match(line))}
    return dict(sorted(pairs.items()))


def compare(allowed: dict[str, str], lock: dict[str, Any], index: str) -> list[Pin]:
    """Return the pins. `lock`: uv.lock; `index`: NAME==VERSION lines, the newest of each package."""
    locked = {package["name"]: package.get("version", "") for package in lock["package"]}
    newest = {match[1].lower(): match[2] for match in PINNED.finditer(index)}
    return [Pin(name, text, locked[name], newest.get(name, locked[name])) for name, text in allowed.items()]


def held(name: str, version: str) -> list[str]:
    """Return which installed packages want another version of a package, and which they want."""
    wishes = _wishes()
    return sorted(
        f"{package} wants {wish.specifier}"
        for package, wish in wishes
        if canonicalize_name(wish.name) == name
        and (wish.marker is None or wish.marker.evaluate({"extra": ""}))
        and not wish.specifier.contains(version)
    )


@functools.cache
def _wishes() -> list[tuple[str, Requirement]]:
    """Return what each installed package wants."""
    return [(package.name, Requirement(line)) for package in distributions() for line in package.requires or []]


def ask(names: list[str]) -> str:
    """Return the newest version of each package as the index says it."""
    argv = ["uv", "pip", "compile", "--no-deps", "--no-header", "--no-annotate", "--quiet", "--no-config", "-"]
    ran = subprocess.run(argv, input="\n".join(names), capture_output=True, text=True, check=True)
    return ran.stdout


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    allowed = requirements(project)
    for pin in compare(allowed, lock, ask(list(allowed))):
        holders = "; ".join(held(pin.name, pin.newest)) if pin.behind else ""
        print(f"{'behind' if pin.behind else '':8}{pin.name:20}{pin.locked:14}{pin.newest:14}{pin.allowed:16}{holders}")


if __name__ == "__main__":
    sys.exit(main())
