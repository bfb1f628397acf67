"""What the documents show can be typed, and does what they say."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from catalog import load, schema
from mlxq.cli import mlxq

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NOTHING_YET = 3
"""Exit code in a home that is not set up."""


def blocks(page: Path, language: str) -> list[str]:
    """Give the fenced blocks of one language, without the indent they stand at."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(page: Path) -> list[list[str]]:
    """Give the words behind `mlxq` of every command after a `$`."""
    lines = re.findall(r"^ *\$ (.+)$", "\n".join(blocks(page, "console")), re.MULTILINE)
    ours = [re.search(r"(?:^|\(|\| |&& )(?:uv run )?(mlxq(?: [^|)]*)?)", line) for line in lines]
    return [shlex.split(found[1], comments=True)[1:] for found in ours if found]


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda value: value.name if isinstance(value, Path) else None)
def test_a_command_that_is_shown_parses(page: Path, words: list[str]) -> None:
    command: click.Command = mlxq
    context = click.Context(mlxq)
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context = found.make_context(name, list(words), parent=context)
        command, words = found, [*context._protected_args, *context.args]


QUICK = [words for page, words in SHOWN if page.name == "README.md" and words[0] != "setup"]


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_command_of_the_readme_says_one_clear_line_where_nothing_is_set_up(words: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"MLXQ_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-P", "-m", "mlxq", *words]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == NOTHING_YET
    assert re.fullmatch(r"Error: .+ is not set up in .+\.\nNext: mlxq setup\n", done.stderr)


def test_the_readme_shows_commands() -> None:
    assert len([page for page, _ in SHOWN if page.name == "README.md"]) >= 3
    assert QUICK


def test_the_example_of_a_model_is_a_model() -> None:
    text = blocks(ROOT / "docs" / "add-a-model.md", "yaml")[0]
    row = schema.parse(text, "my-model-7b.yaml")
    assert load.model(row).id == "my-model-7b"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_is_python(page: Path) -> None:
    for text in blocks(page, "python"):
        ast.parse(text)
