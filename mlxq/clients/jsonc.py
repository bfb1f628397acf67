"""Set values in JSON with comments and trailing commas, without changing any other byte."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from state.classes import dataclass

_BLANK = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_WORD = re.compile(r"[^\s,\]}/]+")
_REST = re.compile(r"[ \t]*//[^\n]*(?=\n)")
INDENT = "  "


@dataclass(frozen=True)
class _Member:
    """One `"name": value` of an object: where its value begins and ends."""

    name: str
    start: int
    end: int


def put(text: str, path: Sequence[str], value: Any) -> str:
    """Return the text with the value at the path set; missing objects are created. Raises ValueError with the line."""
    text = text if text[_skip(text, 0) :] else "{\n}\n"
    at = _skip(text, 0)
    for depth, name in enumerate(path):
        if text[at] != "{":
            raise ValueError(f"line {_line(text, at)}: {'.'.join(path[:depth]) or 'the file'} is no object")
        members = _members(text, at)
        existing = next((member for member in members if member.name == name), None)
        if existing is None:
            return _insert(text, at, members, depth, (name, _nested(path[depth + 1 :], value)))
        at = existing.start
        if depth == len(path) - 1:
            return text[:at] + _dump(value, depth + 1) + text[existing.end :]
    raise ValueError("a path has one name at least")


def _nested(names: Sequence[str], value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


def _insert(text: str, at: int, members: Sequence[_Member], depth: int, added: tuple[str, Any]) -> str:
    """Add a member after the last one of the object at `at`; a comment after that one stays with it."""
    name, value = added
    if not members:
        end = _close(text, at + 1)
        inner = text[at + 1 : end - 1]
        if not inner.strip():
            return text[:at] + _dump({name: value}, depth) + text[end:]
        return f"{text[:at]}{{{_added(name, value, depth)}{inner}{text[end - 1 :]}"
    end = members[-1].end
    comma = _skip(text, end)
    trailing = text[comma] == ","
    position = _line_end(text, comma + 1 if trailing else end)
    before = text[:position] if trailing else text[:end] + "," + text[end:position]
    return before + _added(name, value, depth) + ("," if trailing else "") + text[position:]


def _added(name: str, value: Any, depth: int) -> str:
    """Format a member on its own line."""
    return f"\n{INDENT * (depth + 1)}{json.dumps(name)}: {_dump(value, depth + 1)}"


def _line_end(text: str, at: int) -> int:
    """Return the end of the line if only a comment follows, else `at`."""
    match = _REST.match(text, at)
    return match.end() if match else at


def _dump(value: Any, depth: int) -> str:
    """Format a value, indented `depth` levels."""
    return json.dumps(value, indent=INDENT, ensure_ascii=False).replace("\n", "\n" + INDENT * depth)


def _members(text: str, at: int) -> list[_Member]:
    """Return the members of the object that begins at `at`. Raises ValueError."""
    members: list[_Member] = []
    at = _skip(text, at + 1)
    while _sign(text, at) != "}":
        end = _string(text, at)
        name = json.loads(text[at:end])
        at = _skip(text, end)
        if _sign(text, at) != ":":
            raise _wrong(text, at)
        start = _skip(text, at + 1)
        end = _value(text, start)
        members.append(_Member(name, start, end))
        at = _next(text, end, "}")
    return members


def _value(text: str, at: int) -> int:
    """Return where the value that begins at `at` ends. Raises ValueError."""
    match _sign(text, at):
        case "{":
            members = _members(text, at)
            return _close(text, members[-1].end if members else at + 1)
        case "[":
            end = at + 1
            inner = _skip(text, end)
            while _sign(text, inner) != "]":
                end = _value(text, inner)
                inner = _next(text, end, "]")
            return inner + 1
        case '"':
            return _string(text, at)
        case _:
            return _word(text, at)


def _close(text: str, at: int) -> int:
    """Return the position after the brace that closes an object whose last member ends at `at`."""
    at = _skip(text, at)
    return (_skip(text, at + 1) if text[at] == "," else at) + 1


def _next(text: str, at: int, closing: str) -> int:
    """Return the start of the next element, or of the closing bracket; a trailing comma is allowed."""
    at = _skip(text, at)
    if _sign(text, at) == ",":
        return _skip(text, at + 1)
    if _sign(text, at) != closing:
        raise _wrong(text, at)
    return at


def _string(text: str, at: int) -> int:
    match = _STRING.match(text, at)
    if not match:
        raise _wrong(text, at)
    return match.end()


def _word(text: str, at: int) -> int:
    """Read a number, true, false or null."""
    match = _WORD.match(text, at)
    try:
        json.loads(match[0] if match else "")
    except ValueError:
        raise _wrong(text, at) from None
    assert match
    return match.end()


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match, "the pattern matches nothing at all too"
    return match.end()


def _sign(text: str, at: int) -> str:
    if at >= len(text):
        raise _wrong(text, at)
    return text[at]


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _wrong(text: str, at: int) -> ValueError:
    sign = repr(text[at]) if at < len(text) else "the end"
    return ValueError(f"line {_line(text, at)}: did not expect {sign}")
