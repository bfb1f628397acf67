"""What the small files of a repo and the headers of its weights say, before any of it is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, cast

from state.classes import dataclass

Config = Mapping[str, Any]
"""A config.json, or a part of it; nothing in it is of a type that can be relied on."""
Tensors = Mapping[str, Mapping[str, Any]]
"""The tensors of all shards by name, as safetensors headers tell them: {"dtype", "shape", "data_offsets"}."""
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where models that also see or hear keep the part that writes."""
MANY = 1 << 40
"""No count in a config.json is larger: what is, is no count."""


@dataclass(frozen=True)
class RepoFacts:
    """One repo or folder, as far as it was read."""

    source: str
    """`hub:org/name@revision` or `file:/path`."""
    config: Config
    weights_bytes: int
    """Size of all *.safetensors."""
    tensors: Tensors = field(default_factory=dict[str, Mapping[str, Any]])
    """Empty where the headers could not be read."""
    template: str = ""
    """The chat template; empty for a model that has none."""
    licence: str = ""
    gated: bool = False
    converted: str = ""
    """The quant that mlx-lm will make of it here; empty for weights that are used as they are."""


def text_of(config: Config) -> Config:
    """Return the part of a config.json that describes the model which writes."""
    for name in TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, dict):
            inner = cast("Config", part)
            return text_of(inner) if name == "thinker_config" else inner
    return config


def type_of(config: Config) -> str:
    """Return the model_type that says how the layers are built: that of the text part where it has its own.

    `qwen3_5_moe_text` is read as `qwen3_5_moe`.
    """
    for part in (text_of(config), config):
        name = part.get("model_type")
        if isinstance(name, str) and name:
            return name.removesuffix("_text")
    return ""


def count(config: Config, *names: str) -> int:
    """Return the first of these fields that is a number above 0; of a list its largest; 0 where there is none."""
    for name in names:
        if number := _number(config.get(name)):
            return number
    return 0


def _number(value: Any) -> int:
    if isinstance(value, list):
        return max(map(_number, cast("list[Any]", value)), default=0)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if plain and 0 < value < MANY else 0


def words(config: Config, *names: str) -> Sequence[str]:
    """Return the first of these fields that is a list of words; empty where there is none."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value:
            items = cast("list[Any]", value)
            if all(isinstance(word, str) for word in items):
                return items
    return ()


def numbers(config: Config, name: str) -> Sequence[int]:
    """Return a field that is a list of whole numbers; empty where it is not."""
    value = config.get(name)
    if not isinstance(value, list):
        return ()
    items = cast("list[Any]", value)
    return items if all(isinstance(number, int) and not isinstance(number, bool) for number in items) else ()


def part(config: Config, name: str) -> Config:
    """Return a nested part of a config; empty where there is none."""
    value = config.get(name)
    return cast("Config", value) if isinstance(value, dict) else {}


def text(config: Config, name: str) -> str:
    """Return a field that is a text; empty where it is not."""
    value = config.get(name)
    return value if isinstance(value, str) else ""


def parts(value: Any) -> list[Config]:
    """Return the nested parts of a list or of a table's values; what is no table counts as an empty one."""
    items: list[Any] = list(cast("Config", value).values()) if isinstance(value, dict) else []
    items = cast("list[Any]", value) if isinstance(value, list) else items
    return [cast("Config", item) if isinstance(item, dict) else {} for item in items]


def lengths(header: Mapping[str, Any]) -> list[int]:
    """Return the shape of a tensor; empty where its header tells none."""
    shape: Any = header.get("shape")
    items = cast("list[Any]", shape) if isinstance(shape, list) else []
    return [int(length) for length in items if isinstance(length, int)]
