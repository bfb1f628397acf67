"""pyproject.toml names each library that mlxq imports, and no engine: what its wheel brings is what it says."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from support import messages, pins
from support.engine_lock import needed

from tasks.upgrade import packages

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")
PROGRAMS = ("_program.py", "embedding_model.py", "scaling.py", "front_plugin.py")
"""Files that run in the environment of an engine, or of the front."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = ROOT / "tasks" / "engines" / "locks" / "vllm-mlx-0.6.0.txt"
FORMULA = ROOT / ".ci" / "formula.py"
LINUX = {"mlx-cpu"}
"""Libraries of Linux alone."""
PARTS = {"pydantic-core": "pydantic", "mlx-cpu": "mlx", "mlx-metal": "mlx"}
"""Distributions that come as a part of another one."""


def _formula() -> Any:
    """Load the script that prints the formula; .ci is no package."""
    spec = importlib.util.spec_from_file_location("formula", FORMULA)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["formula"] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def imported() -> frozenset[str]:
    """Return the top-level modules of others that mlxq's files import."""
    names: set[str] = set()
    for path, tree in messages.trees().items():
        if not path.name.endswith(PROGRAMS):
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    names.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.partition(".")[0])
    return frozenset(names - set(sys.stdlib_module_names) - set(PACKAGES))


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


def test_an_upgrade_installs_the_libraries_that_were_tested() -> None:
    """`just lock-own` makes the lock from uv.lock again."""
    argv = ["uv", "export", "--frozen", "--no-default-groups", "--no-emit-project", "--no-header", "--no-annotate"]
    exported = subprocess.run([*argv, "--quiet"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lock = (ROOT / packages.LOCK).read_text(encoding="utf-8")
    assert lock == needed(exported)
    assert not re.search(r"^(vllm|torch|gradio|opencv|nvidia)", lock, re.MULTILINE)


def test_the_formula_has_a_wheel_for_a_mac_of_each_library() -> None:
    """And no other: what an upgrade installs, by the same hashes."""
    lock = (ROOT / packages.LOCK).read_text(encoding="utf-8")
    libraries = _formula().resources(tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8")), lock)
    pinned = re.findall(r"^([\w.-]+)(?:\[\w+\])?==\S+", lock, re.MULTILINE)
    assert {library.name for library in libraries} == set(pinned) - LINUX
    assert all(f"--hash=sha256:{library.sha256}" in lock for library in libraries)
    assert all(library.url.endswith(("any.whl", "arm64.whl", "universal2.whl")) for library in libraries)


def test_a_pin_is_behind_where_the_index_has_a_newer_release() -> None:
    lock = {"package": [{"name": "click", "version": "8.2.0"}, {"name": "huey", "version": "3.5.10"}, {"name": "mlxq"}]}
    compared = pins.compare({"click": ">=8.2", "huey": ">=3.5,<4"}, lock, "click==8.10.1\nhuey==3.5.9\n")
    assert [(pin.name, pin.locked, pin.newest, pin.behind) for pin in compared] == [
        ("click", "8.2.0", "8.10.1", True),
        ("huey", "3.5.10", "3.5.9", False),
    ]
    assert pins.requirements(PROJECT).keys() >= declared()


def test_a_pin_says_who_holds_it() -> None:
    """LiteLLM's 1.108 line wants huggingface_hub below 2; without a release that lets it go, mlxq's range is idle."""
    assert [line for line in pins.held("huggingface-hub", "2.4.0") if line.startswith("litellm ")]
    assert [line for line in pins.held("mlx-lm", "99.0") if line.startswith("mlxq ")]
    assert pins.held("click", "8.5.1") == []


def test_the_engine_is_installed_as_it_was_tested() -> None:
    """`just lock-own-engine` makes the lock from uv.lock again."""
    argv = ["uv", "export", "--frozen", "--only-group", "engine", "--no-header", "--no-annotate", "--quiet"]
    exported = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert LOCK.read_text(encoding="utf-8") == needed(exported)
    assert not any(name in exported for name in ("\ntorch==", "\ngradio==", "\nopencv"))
