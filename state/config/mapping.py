"""A YAML file of `name: value` lines, each read on its own: one that is wrong does not spoil the others."""

from __future__ import annotations

from typing import Any

from state.classes import dataclass
from state.config.text import Unreadable

DEEPEST = 8
"""Levels; settings have two."""


@dataclass(frozen=True)
class ConfigEntry:
    """One line of a file, or several that belong together."""

    name: str
    line: int
    """From 1."""
    value: Any = None
    fault: str = ""
    """Why there is no value."""

    def read(self) -> Any:
        """Return the value. Raises ValueError where there is none."""
        if self.fault:
            raise ValueError(f"a value ({self.fault})")
        return self.value


def parse(text: str) -> list[ConfigEntry]:
    """Return the entries of a text; later ones of the same name count. Raises Unreadable.

    Aliases are refused: a few lines of them can stand for gigabytes.
    """
    import yaml

    loader = yaml.CSafeLoader
    try:
        _expect_plain(text)
        node = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as problem:
        raise Unreadable("this is not YAML", _line_of(problem, text)) from problem
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise Unreadable("this must be `name: value` lines", node.start_mark.line + 1)
    return [_entry(key, value) for key, value in node.value]


def _expect_plain(text: str) -> None:
    """Raise Unreadable for what no user writes: aliases, deep nesting, several documents. Reads events alone."""
    import yaml

    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        assert event.start_mark is not None, "the parser marks each event"
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable("aliases (*) are not supported", line)
        if depth > DEEPEST:
            raise Unreadable("this is nested too deeply", line)
        if documents > 1:
            raise Unreadable("this begins a second document", line)


def _line_of(problem: Exception, text: str) -> int | None:
    """Return the line of a mistake; what is never closed is one where it begins, not at the end of the file."""
    mark, begin = getattr(problem, "problem_mark", None), getattr(problem, "context_mark", None)
    if mark is None:
        return None
    at_the_end = not text.splitlines()[mark.line : mark.line + 1]
    return (begin if begin and at_the_end else mark).line + 1


def _entry(key: Any, value: Any) -> ConfigEntry:
    """Return one entry; its value is made by YAML's safe rules."""
    import yaml

    line = key.start_mark.line + 1
    name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
    try:
        return ConfigEntry(name, line, yaml.CSafeLoader("").construct_document(value))
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        return ConfigEntry(name, line, fault=_first_line(problem))


def _first_line(problem: Exception) -> str:
    reason = getattr(problem, "problem", None) or str(problem)
    return " ".join(str(reason).split())[:200]
