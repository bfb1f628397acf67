"""The user's settings: one table feeds validation, help, documents and the command line.

A value comes from the environment (MLXQ_<NAME>), else from config.yaml, else from the table. It is checked
on every load, so a file edited by hand is held to the same rules as `mlxq config set`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from state import files
from state.errors import MlxqError, UsageProblem
from state.paths import Home

AUTO = "auto"
ENGINES = ("vllm-mlx", "rapid-mlx")
"""Those of catalog/engines.yaml, which this package may not read; a test compares them."""

Source = Literal["environment", "file", "default"]


@dataclass(frozen=True)
class Setting:
    """One setting."""

    name: str
    default: Any
    help: str
    parse: Callable[[Any], Any]
    """Converts the given text or YAML value. Raises ValueError with the allowed values."""
    secret: bool = False
    applies: str = ""
    """The command after which a change takes effect; empty when it takes effect by itself."""

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return "MLXQ_" + self.name.upper().replace("-", "_")


@dataclass(frozen=True)
class Value:
    """What a setting is now, and where that comes from."""

    setting: Setting
    value: Any
    source: Source

    @property
    def shown(self) -> Any:
        """The value as it may be printed: a secret's last four characters alone."""
        if self.setting.secret and self.value:
            return f"…{str(self.value)[-4:]}"
        return self.value


def _number(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(str(value).strip())
        except ValueError:
            number = low - 1
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return parse


def _port_or_off(value: Any) -> int:
    if str(value).strip() == "0":
        return 0
    try:
        return PORT(value)
    except ValueError as problem:
        raise ValueError(f"{problem}, or 0 for off") from problem


def _share(value: Any) -> int | str:
    if value == AUTO:
        return AUTO
    try:
        return _number(10, 90)(value)
    except ValueError as problem:
        raise ValueError(f"{problem}, or {AUTO}") from problem


def _choice(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return parse


def _switch(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    switch = words.get(str(value).strip().lower())
    if switch is None:
        raise ValueError("true or false")
    return switch


def _folder(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the path of a folder")
    return str(Path(value).expanduser().absolute())


def _key(value: Any) -> str:
    if not isinstance(value, str) or not all("!" <= letter <= "~" for letter in value):
        raise ValueError("a key: printable ASCII without spaces")
    return value


def _dollars(value: Any) -> float:
    try:
        amount = float(str(value).strip())
    except ValueError:
        amount = -1.0
    if isinstance(value, bool) or not 0 <= amount <= LARGEST_CAP_USD:
        raise ValueError(f"an amount in dollars from 0 to {LARGEST_CAP_USD}, such as 0.50")
    return amount


def _model_id(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+/[\w.:-]+", value):
        raise ValueError("the id of a model at OpenRouter, such as qwen/qwen3-coder")
    return value


def _address(value: Any) -> str:
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(str(value).strip()))
    except ValueError as problem:
        raise ValueError("an IPv4 address of this machine, or 0.0.0.0 for all of them") from problem


_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,200}")


def _origins(value: Any) -> list[str]:
    words = cast("list[Any]", value) if isinstance(value, list) else str(value).split(",")
    origins = [str(word).strip().rstrip("/") for word in words if str(word).strip()]
    if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("origins such as http://localhost:3000,https://app.example, or * for all")
    return origins


def _aliases(value: Any) -> dict[str, str]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    aliases = {str(name).strip(): str(tier).strip() for name, tier in pairs.items()}
    if not all(_ALIAS.fullmatch(name) and tier for name, tier in aliases.items()):
        raise ValueError("pairs of a model name and a tier, such as gpt-5=standard,o3*=fast")
    return aliases


def _engines(value: Any) -> dict[str, str]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    engines = {str(tier).strip(): str(engine).strip() for tier, engine in pairs.items()}
    if not all(tier and engine in (AUTO, *ENGINES) for tier, engine in engines.items()):
        raise ValueError(f"pairs of a tier and one of {', '.join((AUTO, *ENGINES))}, such as fast=vllm-mlx")
    return engines


def _within(low: float, high: float, kind: type[int | float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = kind(text)
        if not low <= number <= high:
            raise ValueError
        return number

    return parse


LONGEST_ANSWER = 16_384
"""Tokens of one answer at most. Without a limit one client holds a slot for minutes."""
TIER_DEFAULTS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (_within(0, 2, float), "0 to 2"),
    "top-p": (_within(0.001, 1, float), "above 0, up to 1"),
    "top-k": (_within(1, 1000, int), "1 to 1000"),
    "max-tokens": (_within(1, LONGEST_ANSWER, int), f"1 to {LONGEST_ANSWER}"),
    "thinking": (_switch, "true or false"),
    "thinking-budget": (_within(1, LONGEST_ANSWER, int), f"1 to {LONGEST_ANSWER}"),
}
"""What a user writes after a tier's name -> its parser, what it may be. state.stack.Defaults has the same fields."""


def _tier_defaults(value: Any) -> dict[str, Any]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    return {str(name).strip(): _tier_default(str(name).strip(), str(text).strip()) for name, text in pairs.items()}


def _tier_default(name: str, text: str) -> Any:
    tier, _, field = name.rpartition(".")
    example = "such as fast.temperature=0.2,fast.max-tokens=1024"
    if not tier or field not in TIER_DEFAULTS:
        raise ValueError(f"pairs of a tier with one of {', '.join(TIER_DEFAULTS)}, {example}")
    parse, allowed = TIER_DEFAULTS[field]
    try:
        return parse(text)
    except ValueError as problem:
        raise ValueError(f"{name} from {allowed}, {example}") from problem


def _pairs(text: str) -> dict[str, str]:
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {name: tier for name, _, tier in parts}


_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/*-]{0,99}")
LARGEST_CAP_USD = 1000
PORT = _number(1024, 65000)
TIER_PORTS = 10
"""Number of ports, from tier-port-base on, that belong to the tiers."""

SETTINGS: tuple[Setting, ...] = (
    Setting("openrouter-key", "", "API key for OpenRouter, the fallback when no tier is available; empty = off.",
            _key, secret=True, applies="mlxq up"),
    Setting("openrouter-model", "qwen/qwen3-30b-a3b-instruct-2507", "Model to request from OpenRouter.",
            _model_id, applies="mlxq up"),
    Setting("cloud-cap-usd", 1.0, "Most to spend at OpenRouter in a day (UTC), in dollars.",
            _dollars, applies="mlxq up"),
    Setting("engine", AUTO, "Engine that serves the tiers; auto = the one that reads each model's prompts once.",
            _choice(AUTO, *ENGINES), applies="mlxq up"),
    Setting("tier-engines", {}, "Engines of single tiers, where they differ.",
            _engines, applies="mlxq up"),
    Setting("tier-defaults", {}, "What the gateway fills in for single tiers where a request says nothing.",
            _tier_defaults, applies="mlxq up"),
    Setting("default-quant", "int4", "Quant to use unless another is requested.",
            _choice("int4", "int8", "bf16"), applies="mlxq setup"),
    Setting("memory-budget-pct", AUTO, "Share of memory that models may use, in percent; auto = all that is usable.",
            _share, applies="mlxq setup"),
    Setting("litellm-port", 4000, "Port of the gateway.", PORT, applies="mlxq up"),
    Setting("gateway-host", "127.0.0.1",
            "Address to listen on besides 127.0.0.1, for other machines; requires an API key.",
            _address, applies="mlxq up"),
    Setting("allowed-origins", [],
            "Web pages whose scripts may read the gateway's answers, such as http://localhost:3000; empty = none.",
            _origins, applies="mlxq up"),
    Setting("aliases", {}, "Model names that clients send, mapped to tiers; added to the built-in ones.",
            _aliases, applies="mlxq up"),
    Setting("page-port", 4001, "Port of the `mlxq dashboard` page on 127.0.0.1; 0 = off.", _port_or_off,
            applies="mlxq up"),
    Setting("tier-port-base", 8000, "Port of the first engine; the others follow.", PORT, applies="mlxq setup"),
    Setting("model-dir", None, "Folder for weights; default MLXQ_HOME/models.", _folder, applies="mlxq setup"),
    Setting("auto-health-check", True, "Restart services that hang or crash.", _switch),
    Setting("watch-interval", 2, "Seconds between health checks; exits are detected immediately regardless.",
            _number(1, 3600)),
    Setting("max-restarts", 5, "Exits allowed in ten minutes; beyond these it is a crash loop: removed from routing.",
            _number(1, 100)),
    Setting("restart-delay", 1, "Seconds before the second restart in a row; doubled before each further one.",
            _number(1, 60)),
    Setting("log-max-size-mb", 50, "Logs larger than this are rotated, in MB.", _number(1, 10_000)),
    Setting("log-max-files", 3, "Rotated logs to keep for each service.", _number(1, 100)),
)  # fmt: skip
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


class Settings:
    """All settings as they are now."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        """Return one setting's value."""
        return self.values[name].value

    def models(self, home: Home) -> Path:
        """Return the folder for weights."""
        return Path(self["model-dir"]) if self["model-dir"] else home.models


def find(name: str) -> Setting:
    """Return the setting of that name. Raises UsageProblem with the nearest name."""
    if name in BY_NAME:
        return BY_NAME[name]
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    raise UsageProblem(
        f"There is no setting {name!r}." + (f" Did you mean {near[0]}?" if near else ""), hint="mlxq config list"
    )


def load(home: Home) -> Settings:
    """Read all settings. Raises UsageProblem that names the file, the key and what is allowed."""
    return _checked(home, read_file(home))


def _checked(home: Home, written: Mapping[str, Any]) -> Settings:
    """Check each setting by its own rule, and that the ports differ."""
    settings = Settings({setting.name: _value(setting, written, home) for setting in SETTINGS})
    tiers = range(settings["tier-port-base"], settings["tier-port-base"] + TIER_PORTS)
    for name in ("litellm-port", "page-port"):
        if settings[name] in tiers:
            raise UsageProblem(
                f"{name} {settings[name]} is one of the tiers' ports ({tiers[0]} to {tiers[-1]}, from tier-port-base).",
                hint=f"mlxq config set {name} {tiers[-1] + 1}",
            )
    if settings["litellm-port"] == settings["page-port"]:
        port = settings["page-port"]
        raise UsageProblem(f"litellm-port and page-port are both {port}.", hint=f"mlxq config set page-port {port + 1}")
    return settings


def _value(setting: Setting, written: Mapping[str, Any], home: Home) -> Value:
    value = os.environ.get(setting.variable)
    if value is not None:
        return Value(setting, check(setting, value, setting.variable), "environment")
    if setting.name in written:
        return Value(setting, check(setting, written[setting.name], str(home.config)), "file")
    return Value(setting, setting.default, "default")


def check(setting: Setting, value: Any, origin: str = "") -> Any:
    """Return the value that was meant; `origin` says what holds it already. Raises UsageProblem."""
    try:
        return setting.parse(value)
    except ValueError as problem:
        shown = "that value" if setting.secret else repr(value)
        prefix = f"{origin}: " if origin else ""
        verb = "reset" if origin else "get"
        raise UsageProblem(
            f"{prefix}{setting.name} must be {problem}, not {shown}.", hint=f"mlxq config {verb} {setting.name}"
        ) from problem


def read_file(home: Home) -> dict[str, Any]:
    """Return what config.yaml holds. Raises UsageProblem when it is not a mapping of known settings."""
    try:
        text = home.config.read_text()
    except FileNotFoundError:
        return {}
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        location = f", line {mark.line + 1}" if mark else ""
        raise UsageProblem(
            f"{home.config}{location}: this is not YAML.", done="It was left as it is.", hint=f"$EDITOR {home.config}"
        ) from problem
    if not isinstance(document or {}, dict):
        raise UsageProblem(f"{home.config}: this must be `name: value` lines.", hint=f"$EDITOR {home.config}")
    written: dict[Any, Any] = dict(document or {})
    return {find(str(name)).name: value for name, value in written.items()}


def write(home: Home, name: str, text: Any) -> Any:
    """Set one setting in config.yaml and return the value. Raises UsageProblem."""
    setting = find(name)
    value = check(setting, text)
    written = read_file(home) | {name: value}
    _checked(home, written)
    _save(home, written)
    return value


def reset(home: Home, name: str | None) -> None:
    """Bring one setting, or all, back to the default; a broken file is kept as config.yaml.bad."""
    if name is None:
        if home.config.exists():
            home.config.replace(home.config.with_suffix(".yaml.bad"))
        return
    setting = find(name)
    _save(home, {key: value for key, value in read_file(home).items() if key != setting.name})


def _save(home: Home, values: Mapping[str, Any]) -> None:
    import yaml

    write_private(home.make().config, yaml.safe_dump(dict(values), sort_keys=True))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: temp, fsync, rename. Raises MlxqError where that is not possible."""
    try:
        files.replace_private(path, text)
    except OSError as problem:
        raise MlxqError(
            f"Cannot write {path}: {problem.strerror}.", done="It is as it was.", hint=f"ls -la {path.parent}"
        ) from problem
