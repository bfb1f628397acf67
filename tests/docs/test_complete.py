"""The documents tell all there is, and nothing that is not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import generate
import pytest
from support import messages

from mlxq.cli import mlxq
from state import settings
from state.errors import MlxqError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
OURS = [page for page in PAGES if page.name != "CHANGELOG.md"]
OTHER_WORDS = {
    r"\bdaemons?\b": "worker",
    r"\b(?:job|queue) (?:server|runner|processor)\b": "worker",
    r"\bconsumers?\b": "worker",
    r"\bsubprocess worker\b": "engine",
    r"\b(?:model|inference|vllm-mlx) servers?\b": "engine",
    r"\brouter\b": "gateway",
    r"\bthe proxy\b|\bLiteLLM proxy\b": "gateway",
    r"\bquanti[sz]ations?\b": "quant",
    r"\bcheckpoints?\b": "weights",
    r"\bthread pools?\b": "queue",
}
"""What else people call things; one thing has one word here (CONTRIBUTING.md, Words)."""
TERMS_OF_OTHERS = r"--daemon|launch daemon|LaunchDaemons|daemon-reload|network's proxy|company's proxy"


def said(page: Path) -> str:
    return page.read_text()


def test_what_is_generated_is_up_to_date() -> None:
    """Run `just docs` when this fails. One process checks all pages: to start one costs seconds."""
    argv = [sys.executable, "-m", "cogapp", "--check", "--diff", "-I", str(DOCS), *map(str, PAGES)]
    checked = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout


def test_the_manual_page_is_up_to_date_and_readable() -> None:
    """Run `just docs` when this fails. A process of its own makes it: click keeps the help options of earlier tests."""
    argv = [sys.executable, "-c", "import generate; print(generate.manual(), end='')"]
    made = subprocess.run(argv, cwd=DOCS, capture_output=True, text=True, check=True).stdout
    assert generate.MANUAL.read_text() == made
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    argv = ["groff", "-man", "-ww", "-Tutf8", "-rLL=100n", "-P-c", str(generate.MANUAL)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in ("several models behind one endpoint", "mlxq setup [OPTIONS]", "Folder of mlxq's files"):
        assert text in shown.stdout


@pytest.mark.parametrize("path", list(generate.paths()), ids=" ".join)
def test_every_command_and_option_is_told(path: list[str]) -> None:
    _, _, rest = said(DOCS / "cli.md").partition(f"## {' '.join(['mlxq', *path])}\n")
    section = rest.partition("\n## ")[0]
    assert section
    for option in [option for option in _command(path).params if not getattr(option, "hidden", False)]:
        assert all(name in section for name in option.opts if name.startswith("-"))


def _command(path: list[str]) -> click.Command:
    found: click.Command = mlxq
    for name in path:
        assert isinstance(found, click.Group)
        command = found.get_command(click.Context(found), name)
        assert command is not None
        found = command
    return found


def test_every_setting_is_told() -> None:
    page = said(DOCS / "settings.md")
    for each in settings.SETTINGS:
        assert f"| `{each.name}` |" in page
        assert f"`{each.variable}`" in page


def _family(kind: type[MlxqError]) -> list[type[MlxqError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _family(child))]


@pytest.mark.parametrize("kind", _family(MlxqError), ids=lambda kind: kind.code)
def test_every_error_is_told_with_its_exit_code(kind: type[MlxqError]) -> None:
    pattern = rf"`{kind.code}`[^.`]*exit {kind.exit_code}\b" + (
        ".{0,20}tried\\s+again" if kind.retry else "(?!, tried)"
    )
    assert re.search(pattern, said(DOCS / "errors.md"), re.DOTALL)


def _plain(sentence: str) -> str:
    return re.sub(f"{messages.HOLE}+", messages.HOLE, sentence.replace("`", "")).strip()


def _told() -> set[str]:
    """Give the messages that docs/errors.md tells: the first cell of each row that is set as code."""
    cells = re.findall(r"^\| (`.+?`) \| ", said(DOCS / "errors.md"), re.MULTILINE)
    return {_plain(cell) for cell in cells}


def test_every_message_is_told() -> None:
    """A new message needs a row in docs/errors.md: the sentence, its cause, what to do."""
    told = _told()
    assert [f"{each.place}: {each.text}" for each in messages.messages() if _plain(each.text) not in told] == []


def test_no_message_is_told_that_is_gone() -> None:
    assert set() == _told() - {_plain(each.text) for each in messages.messages()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", said(page)):
        if not target.startswith(("https://", "http://", "mailto:")):
            file, _, anchor = target.partition("#")
            found = (page.parent / file) if file else page
            assert found.exists(), target
            assert not anchor or anchor in _anchors(found), target


def _anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", said(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_a_thing_has_one_word(page: Path) -> None:
    text = re.sub(TERMS_OF_OTHERS, "", said(page))
    found = {word: use for pattern, use in OTHER_WORDS.items() for word in re.findall(pattern, text, re.IGNORECASE)}
    assert found == {}, "say the second word instead of the first"


def test_messages_use_the_same_words() -> None:
    texts = [re.sub(TERMS_OF_OTHERS, "", each.text) for each in messages.messages()]
    assert [text for text in texts for pattern in OTHER_WORDS if re.search(pattern, text, re.IGNORECASE)] == []


COMMAND = r"(?:uv run )?mlxq ([a-z][a-z-]*(?: [a-z][a-z-]*)?)"


def _exists(words: str) -> bool:
    name, *rest = words.split()
    found = mlxq.get_command(click.Context(mlxq), name)
    if isinstance(found, click.Group) and rest:
        return found.get_command(click.Context(found), rest[0]) is not None
    return found is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """Commands in running text, in tables and in blocks, such as `mlxq jobs watch 12`."""
    text = re.sub(r"```python.*?```|^\| `.+?` \|", "", said(page), flags=re.DOTALL | re.MULTILINE)
    shown = re.findall(f"`{COMMAND}", text) + re.findall(f"^\\s*\\$ {COMMAND}", text, re.MULTILINE)
    assert [words for words in shown if not _exists(words)] == []


def test_every_command_that_a_message_names_next_exists() -> None:
    hints = [
        (each.place, words) for each in messages.messages() for words in re.findall(f"^{COMMAND}", each.hint or "")
    ]
    assert len(hints) > 50
    assert [hint for hint in hints if not _exists(hint[1])] == []


FILE = r"`((?:mlxq|tasks|catalog|state|tests|docs|benchmarks)/[\w./*-]*)(?:: (\w+))?`"
INVENTED = {"mlxq/commands/touch.py"}
"""What docs/add-a-command.md has its reader write."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Also what is named in it, such as `state/ledger.py: submit`."""
    for file, name in re.findall(FILE, said(page)):
        found = list(ROOT.glob(file))
        assert found or file in INVENTED, file
        assert not name or re.search(rf"^(?:def |class )?{name}\b", found[0].read_text(), re.MULTILINE), name


def test_exception_is_caught_where_contributing_says() -> None:
    catching = re.compile(r"^ *except (?:Exception|\(Exception\b)", re.MULTILINE)
    files = [path for package in messages.PACKAGES for path in (ROOT / package).rglob("*.py")]
    caught = {str(path.relative_to(ROOT)) for path in files if catching.search(path.read_text())}
    told = re.search(r"`Exception` is caught in two places: `(.+?)` and `(.+?)`", said(ROOT / "CONTRIBUTING.md"))
    assert told
    assert set(told.groups()) == caught
