"""Every message a person can meet, read from the source: the words that errors and causes are made with."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from state import errors
from state.errors import MlxqError
from tasks.engines.adapters import ENGINES
from tasks.plan import exit_causes

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")
HOLE = "…"
"""Stands for what differs from one time to the next."""
FAMILY = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MlxqError)}
MAKERS = FAMILY | {"ConfigProblem", "UsageError", "fail", "exit", "Cause", "Refusal", "ProxyException", "__init__"}
"""Whatever is called with words for a person: the family, click's own, what the endpoint answers, the catalog's
through super()."""


LONG = 60
"""Characters from which on a text is a sentence, however it ends."""


@dataclass(frozen=True)
class Message:
    """One sentence with holes, the line it comes from, and the command it names as the next one."""

    text: str
    place: str
    hint: str | None = None


@functools.cache
def messages() -> list[Message]:
    """Return every message, in the order of the files."""
    found = [message for path, tree in trees().items() for message in _in_file(path, tree)]
    causes = [
        exit_causes.Cause(rule.code, rule.sentence.format(HOLE), rule.hint, rule.permanent)
        for rule in (*exit_causes.FIRST, *(rule for one in ENGINES.values() for rule in one.rules), *exit_causes.LAST)
    ]
    causes += [exit_causes.explain(code, "", HOLE) for code in (None, 99)]
    return found + [
        Message(cause.sentence.replace("99", HOLE), "tasks/plan/exit_causes.py", cause.hint.replace("{service}", HOLE))
        for cause in causes
    ]


@functools.cache
def trees() -> Mapping[Path, ast.Module]:
    """Return file -> what it says, in the order of the files; each is parsed once."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}


def _in_file(path: Path, tree: ast.Module) -> Iterator[Message]:
    named = _assigned(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in MAKERS:
            words = {word.arg: word.value for word in node.keywords}
            hints = _texts(words["hint"], named) if "hint" in words else []
            said = [
                *node.args[: 1 if _name(node.func) == "ConfigProblem" else 2],
                *(words[name] for name in ("message",) if name in words),
            ]
            for text in (text.partition("\n")[0] for argument in said for text in _texts(argument, named)):
                if _is_sentence(text):
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield Message(text, place, hints[0] if hints else None)


def _assigned(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """Give what is assigned to each name of a file, wherever."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def _name(called: ast.expr) -> str:
    match called:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _is_sentence(text: str) -> bool:
    ends = text.rstrip(HOLE)[-1:] in {".", " ", ":"} or len(text) > LONG
    return re.search(r"[a-z]{2}", text) is not None and ends


def _texts(words: ast.expr, named: Mapping[str, list[ast.expr]]) -> list[str]:
    """Give the text that an expression makes, with holes; several where it chooses between texts."""
    match words:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in parts)]
        case ast.BinOp(left=left):  # what is added behind differs from one time to the next
            return _texts(left, named)
        case ast.IfExp(body=yes, orelse=no):
            return _texts(yes, named) + _texts(no, named)
        case ast.Name(id=name) if name in named:
            rest = {other: values for other, values in named.items() if other != name}
            return [text for value in named[name] for text in _texts(value, rest)]
        case _:
            return []
