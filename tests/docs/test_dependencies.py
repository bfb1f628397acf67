"""pyproject.toml names each library that mlxq imports, and no engine: what its wheel brings is what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from support.engine_lock import needed

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")
PROGRAMS = ("_program.py", "embedding_model.py")
"""Files that run in an engine's environment."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = ROOT / "tasks" / "engines" / "locks" / "vllm-mlx-0.6.0.txt"
PARTS = {"pydantic-core": "pydantic", "mlx-cpu": "mlx", "mlx-metal": "mlx"}
"""Distributions that come as a part of another one."""


def imported() -> set[str]:
    """Return the top-level modules of others that mlxq's files import."""
    names: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if not path.name.endswith(PROGRAMS):
                for node in ast.walk(ast.parse(path.read_bytes())):
                    if isinstance(node, ast.Import):
                        names.update(alias.name.partition(".")[0] for alias in node.names)
                    elif isinstance(node, ast.ImportFrom) and node.module:
                        names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def declared() -> set[str]:
    names = (re.match(r"[\w.-]+", requirement) for requirement in PROJECT["project"]["dependencies"])
    return {normal(name[0]) for name in names if name}


def used() -> set[str]:
    """Return the distributions that bring what is imported."""
    brings = packages_distributions()
    return {PARTS.get(name, name) for module in imported() for name in map(normal, brings.get(module, [module]))}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_what_is_imported_is_declared() -> None:
    assert used() - declared() == set()


def test_what_is_declared_is_imported_or_run() -> None:
    assert declared() - used() == {"mlx-lm"}


def test_no_engine_comes_with_the_wheel() -> None:
    assert not {"vllm-mlx", "rapid-mlx", "torch", "gradio", "opencv-python"} & declared()
    assert PROJECT["dependency-groups"]["engine"][0] == "vllm-mlx==0.6.0"


def test_the_engine_is_installed_as_it_was_tested() -> None:
    """`just lock-own-engine` makes the lock from uv.lock again."""
    argv = ["uv", "export", "--frozen", "--only-group", "engine", "--no-header", "--no-annotate", "--quiet"]
    exported = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert LOCK.read_text(encoding="utf-8") == needed(exported)
    assert not any(name in exported for name in ("\ntorch==", "\ngradio==", "\nopencv"))
