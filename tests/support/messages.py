"""Every message a person can meet, read from the source: the words that errors and causes are made with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from state import errors
from state.errors import MlxqError
from tasks.plan import failure

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")
HOLE = "…"
"""Stands for what differs from one time to the next."""
FAMILY = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MlxqError)}
MAKERS = FAMILY | {"UsageError", "Cause", "__init__"}
"""Whatever is called with words for a person: the family, click's own error, and the catalog's through super()."""


@dataclass(frozen=True)
class Message:
    """One sentence with holes, the line it comes from, and the command it names as the next one."""

    text: str
    place: str
    hint: str | None = None


def messages() -> list[Message]:
    """Give every message, in the order of the files."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found = [message for path in files for message in _in_file(path)]
    causes = [failure.Cause(rule.code, rule.sentence.format(HOLE), rule.hint, rule.permanent) for rule in failure.TABLE]
    causes += [failure.explain(code, "", HOLE) for code in (None, 99)]
    return found + [
        Message(cause.sentence.replace("99", HOLE), "tasks/plan/failure.py", cause.hint.replace("{service}", HOLE))
        for cause in causes
    ]


def _in_file(path: Path) -> Iterator[Message]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and _name(node.func) in MAKERS:
            hints = [text for word in node.keywords if word.arg == "hint" for text in _texts(word.value)]
            for text in (text for argument in node.args[:2] for text in _texts(argument)):
                if _is_sentence(text):
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield Message(text, place, hints[0] if hints else None)


def _name(called: ast.expr) -> str:
    match called:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _is_sentence(text: str) -> bool:
    return re.search(r"[a-z]{2}", text) is not None and text.rstrip(HOLE)[-1:] in {".", " ", ":"}


def _texts(words: ast.expr) -> list[str]:
    """Give the text that an expression makes, with holes; several where it chooses between texts."""
    match words:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in parts)]
        case ast.BinOp(left=left):  # what is added behind differs from one time to the next
            return _texts(left)
        case ast.IfExp(body=yes, orelse=no):
            return _texts(yes) + _texts(no)
        case _:
            return []
