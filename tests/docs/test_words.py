"""The documents and the program speak the field's words: no word of the list below comes back.

The list is of words that mlxq once had for things with standard names, and of idioms that native readers stumble over.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import generate
import pytest
from support import messages

ROOT = Path(__file__).parents[2]
GENERATED_FROM_CODE = {"cli.md", "errors.md"}
"""Pages that quote the program; their own sentences are checked by hand."""
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")])
    if page.name not in GENERATED_FROM_CODE
]
OLD_WORDS = {
    r"\bput(?:s|ting)? (?:\w+ ){0,3}down\b": "stop",
    r"\bput in by\b": "requested by",
    r"\banew\b": "again; restart",
    r"\blikewise\b": "the same, said in full",
    r"\bwhoever\b|\bnobody\b|\bsomebody\b": "the user; no one; another program",
    r"\ba person\b|\bthe person\b": "the user",
    r"\bis at it\b": "is running it",
    r"\bso (?:many|often)\b": "number of",
    r"\bmend(?:s|ed|ing)?\b": "fix, repair",
    r"\bbur(?:y|ies|ied)\b": "record the exit",
    r"\bkeeper\b|\bpurse\b|\broster\b|\bupkeep\b|\bsuccession\b": "the standard term of CONTRIBUTING",
    r"\bgo(?:es)? on\b": "continue, resume, keep running",
    r"\blies? in\b": "is in",
    r"\bshall\b": "should, must, will",
    r"\bfirst word\b": "TTFT",
    r"\bflapping\b": "crash loop",
    r"\b\d+ (?:broken|odd|well)\b": "errors, warnings, passed",
    r"\bset-up\b": "setup",
    r"\blanes?\b": "queue",
}


def _old_words(text: str) -> dict[str, str]:
    return {word: use for pattern, use in OLD_WORDS.items() for word in re.findall(pattern, text, re.IGNORECASE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_old_word(page: Path) -> None:
    own = re.sub(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", "", page.read_text(), flags=re.DOTALL)
    assert _old_words(own) == {}, "say the second instead of the first"


@pytest.mark.parametrize("path", list(generate.paths()), ids=" ".join)
def test_the_help_has_no_old_word(path: list[str]) -> None:
    assert _old_words(generate.help_of(path)) == {}, "say the second instead of the first"


def test_messages_have_no_old_word() -> None:
    found = [(message.place, word) for message in messages.messages() for word in _old_words(message.text)]
    assert found == []


def _docstrings() -> Iterator[tuple[str, str]]:
    """Yield where each docstring of the program is, and its text."""
    for file, tree in messages.trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if docstring := ast.get_docstring(node):
                yield f"{file.relative_to(ROOT)}:{node.body[0].lineno}", docstring


def test_docstrings_have_no_old_word_and_begin_with_a_verb_that_says_what_happens() -> None:
    docstrings = list(_docstrings())

    assert [(where, text) for where, text in docstrings if text.startswith(("Give ", "Tell "))] == []
    assert [(where, words) for where, text in docstrings if (words := _old_words(text))] == []
