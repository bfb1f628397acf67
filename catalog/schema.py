"""What a model file may say; a mistake is told with its file, field, line and the allowed values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import yaml

from catalog.problems import BadModelFile
from state.classes import dataclass

TOOL_PARSERS = frozenset(
    """
    auto deepseek deepseek_r1 deepseek_v3 deepseek_v4 dsml functionary gemma4 generic glm4 glm47 gpt-oss
    granite granite3 harmony hermes kimi kimi_k2 llama llama3 llama4 meetkai minimax minimax_m2 mistral
    moonshot nemotron nemotron3 nous poolside_v1 qwen qwen3 qwen3.5 qwen3_coder qwen3_xml step step3p5 xlam
    """.split()  # noqa: SIM905 - forty quoted names would be a page
)
"""The names vllm-mlx 0.6.0 knows; a test compares them with the installed release."""
REASONING_PARSERS = frozenset(
    [
        "qwen3",
        "deepseek_r1",
        "deepseek_v4",
        "gpt_oss",
        "harmony",
        "gemma4",
        "glm4",
        "mistral",
        "poolside_v1",
        "step3p5",
    ]
)
ARCHITECTURES = (
    "transformer", "transformer-ple", "moe", "moe-mla", "hybrid-linear", "hybrid-linear-moe", "hybrid-mamba2",
    "hybrid-mamba2-moe", "hybrid-conv", "hybrid-conv-moe",
)  # fmt: skip
QUANT = re.compile(r"int[2-8]|bf16|fp16|fp32|mxfp4|mxfp8|nvfp4|mxfp4-q[48]")
_SOURCE = re.compile(r"hub:[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?:#\w+)?|pypi:[\w.-]+==[\w.]+|file:/.+")
_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")

Place = tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """What one field may hold."""

    holds: Callable[[Any], bool]
    allowed: str
    required: bool = False


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in cast("list[Any]", value))


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_text(key) and _is_text(item) for key, item in cast("dict[Any, Any]", value).items()
    )


def _is_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_text(key) and _is_positive(points) and points <= 100  # noqa: PLR2004 - scores are percent
        for key, points in cast("dict[Any, Any]", value).items()
    )


def _one_of(*names: str | None) -> Rule:
    words = ", ".join("null" if name is None else name for name in sorted(names, key=str))
    return Rule(lambda value: value in names, words)


def _must(rule: Rule) -> Rule:
    return Rule(rule.holds, rule.allowed, required=True)


TEXT = Rule(_is_text, "text")
TEXTS = Rule(_is_texts, "a list of texts")
COUNT = Rule(_is_count, "a whole number, 0 or more")
SIZE = Rule(lambda value: _is_count(value) and value > 0, "a whole number above 0")
NUMBER = Rule(_is_positive, "a number above 0")
FLAG = Rule(lambda value: isinstance(value, bool), "true, false")
SECTION = Rule(lambda value: isinstance(value, dict) and bool(cast("dict[Any, Any]", value)), "fields below it")

MODEL = {
    "id": _must(Rule(_matches(_ID), "lower case letters, digits, dots and dashes")),
    "name": TEXT,
    "family": TEXT,
    "repo": TEXT,
    "released": Rule(_matches(re.compile(r"\d{4}-\d\d-\d\d")), "'YYYY-MM-DD', in quotes"),
    "licence": TEXT,
    "gated": FLAG,
    "total_params_b": _must(NUMBER),
    "active_params_b": NUMBER,
    "text_params_b": NUMBER,
    "input_params_b": NUMBER,
    "expert_spread": NUMBER,
    "architecture": _one_of(*ARCHITECTURES),
    "layers": _must(SIZE),
    "hidden_size": _must(SIZE),
    "attention": _must(SECTION),
    "context": _must(SIZE),
    "tool_parser": _one_of(None, *TOOL_PARSERS),
    "reasoning_parser": _one_of(None, *REASONING_PARSERS),
    "vision": FLAG,
    "tower_bytes": COUNT,
    "loader": _one_of("mlx-lm", "mlx-vlm"),
    "quants": _must(SECTION),
    "scores": Rule(_is_scores, "benchmark names with percents"),
    "scores_from": TEXT,
    "tags": TEXTS,
    "aliases": TEXTS,
    "stands_for": Rule(_is_text_map, "names with the reason"),
    "note": TEXT,
    "retired": TEXT,
}
ATTENTION = {
    "full": _must(COUNT),
    "kv_heads": COUNT,
    "head_dim": COUNT,
    "sliding": COUNT,
    "window": COUNT,
    "recurrent": COUNT,
    "full_kv_heads": COUNT,
    "full_head_dim": COUNT,
    "latent": COUNT,
    "query_heads": COUNT,
    "recurrent_width": COUNT,
    "recurrent_state": COUNT,
}
QUANTS = {
    "source": _must(Rule(_matches(_SOURCE), "hub:org/name, hub:org/name@revision, pypi:name==version, file:/path")),
    "bytes": _must(SIZE),
    "bytes_from": TEXT,
    "loaded": SIZE,
    "confidence": _one_of("high", "medium", "low"),
    "seen_in": TEXTS,
    "downloads_30d": COUNT,
}

DEEPEST = 16
"""Levels of a model file; real ones have four."""
Fault = tuple[Place, str, str]


def parse(text: str, file: str) -> dict[str, Any]:
    """Read one model file and check it. Raises BadModelFile at the first mistake."""
    try:
        _expect_plain(text, file)
        row: Any = yaml.load(text, Loader=yaml.CSafeLoader)
    except ValueError as problem:
        if isinstance(problem, BadModelFile):
            raise
        raise BadModelFile(file, 1, "", f"not a value: {problem}", "") from problem
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        reason = getattr(problem, "problem", None) or "it holds characters that YAML forbids"
        raise BadModelFile(file, mark.line + 1 if mark else 1, "", f"not YAML: {reason}", "") from problem
    for path, problem, allowed in faults(row):
        raise BadModelFile(file, _line(text, path), ".".join(path), problem, allowed)
    return row


def _expect_plain(text: str, file: str) -> None:
    """Raise BadModelFile for aliases, a few lines of which can stand for gigabytes, and for deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            reason = "aliases (*) are not supported" if isinstance(event, yaml.AliasEvent) else "nested too deeply"
            raise BadModelFile(file, event.start_mark.line + 1 if event.start_mark else 1, "", reason, "")


def faults(row: Any) -> Iterator[Fault]:
    """Return every mistake of one parsed file: where, what, and what is allowed there."""
    if not isinstance(row, dict):
        yield (), "a model file is a table of fields", ", ".join(MODEL)
        return
    fields = cast("dict[Any, Any]", row)
    flat = list(_section(fields, MODEL, ()))
    yield from flat
    if flat:
        return
    yield from _section(fields["attention"], ATTENTION, ("attention",))
    for name, quant in fields["quants"].items():
        yield from _quant(name, quant)
    yield from _agreement(fields)


def _section(row: Mapping[Any, Any], rules: Mapping[str, Rule], above: Place) -> Iterator[Fault]:
    for key, value in row.items():
        if key not in rules:
            yield (*above, str(key)), "unknown field", ", ".join(rules)
        elif not rules[key].holds(value):
            yield (*above, str(key)), f"{value!r} is not allowed", rules[key].allowed
    for key, rule in rules.items():
        if rule.required and key not in row:
            yield above, f"the field {key} is missing", rule.allowed


def _quant(name: Any, quant: Any) -> Iterator[Fault]:
    path = ("quants", str(name))
    if not _matches(QUANT)(name):
        yield path, "no such quant", "int2 to int8, bf16, fp16, fp32, mxfp4, mxfp8, nvfp4, mxfp4-q4, mxfp4-q8"
    elif not isinstance(quant, dict):
        yield path, f"{quant!r} is not allowed", ", ".join(QUANTS)
    else:
        yield from _section(cast("dict[Any, Any]", quant), QUANTS, path)


def _agreement(row: Mapping[str, Any]) -> Iterator[Fault]:
    """Return the mistakes that only two fields together show."""
    attention = row["attention"]
    if row.get("active_params_b", 0) > row["total_params_b"]:
        yield ("active_params_b",), "more than total_params_b", f"up to {row['total_params_b']}"
    attending = attention["full"] + attention.get("sliding", 0)
    if max(attending, attention.get("recurrent", 0)) > row["layers"]:
        yield ("attention",), "more layers than the model has", f"up to {row['layers']} of each"
    if attention.get("sliding") and not attention.get("window"):
        yield ("attention",), "sliding layers without a window", "window: tokens"
    if attending and not attention.get("latent") and not (attention.get("kv_heads") and attention.get("head_dim")):
        yield ("attention",), "the size of a token's cache is missing", "kv_heads and head_dim, or latent"


def _line(text: str, path: Place) -> int:
    """Find the line (from 1) of a field, or of the nearest field above it that exists."""
    node: Any = yaml.compose(text, Loader=yaml.CSafeLoader)
    line = 1
    for key in path:
        pairs = cast("list[tuple[Any, Any]]", node.value if isinstance(node, yaml.MappingNode) else [])
        entry = next((pair for pair in pairs if pair[0].value == key), None)
        if entry is None:
            break
        line, node = int(entry[0].start_mark.line) + 1, entry[1]
    return line
