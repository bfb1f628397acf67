"""The user's settings: one table feeds validation, help, documents and the command line.

A value comes from the environment (MLXQ_<NAME>), else from config.yaml, else from the table. It is checked
on every load, so a file edited by hand is held to the same rules as `mlxq config set`. What is wrong never stops a
program: the last valid value counts instead, and the problem is told.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from state import files
from state.classes import dataclass
from state.config import good, mapping
from state.config import text as texts
from state.config.mapping import ConfigEntry
from state.config.problem import ConfigProblem
from state.config.text import Unreadable
from state.errors import MlxqError, UsageProblem
from state.paths import Home

AUTO = "auto"
OFF = "off"
LONGEST_PATH = 768
"""Bytes; macOS takes 1,024 and the names of weights come after it."""
LONGEST_KEY = 512
ENGINES = ("vllm-mlx", "rapid-mlx")
"""Those of catalog/engines.yaml, which this package may not read; a test compares them."""

Source = Literal["environment", "file", "last valid file", "default"]


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
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("the path of a folder, without control characters")
    path = str(Path(value).expanduser().absolute())
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(f"the path of a folder, of at most {LONGEST_PATH} bytes")
    return path


def _key(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_KEY or not all("!" <= letter <= "~" for letter in value):
        raise ValueError(f"a key: at most {LONGEST_KEY} characters of printable ASCII without spaces")
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


def _redis(value: Any) -> str:
    if value in ("", None):
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_KEY or not re.fullmatch(_REDIS, value):
        raise ValueError("redis://HOST:PORT/0 or rediss://…, with :PASSWORD@ before the host if it has one; or empty")
    return value


_REDIS = r"rediss?://([\w.~%-]*:[\w.~%!$&'()*+,;=-]+@)?[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[0-9]{1,3})?"


def _address(value: Any) -> str:
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(str(value).strip()))
    except ValueError as problem:
        raise ValueError("an IPv4 address of this machine, or 0.0.0.0 for all of them") from problem


NODE_NAME = r"[a-z0-9][a-z0-9-]{0,30}"
"""A label of a host's name (RFC 1123) that is short enough for a column."""


def _node_name(value: Any) -> str:
    name = str(value or "").strip()
    if name and not re.fullmatch(NODE_NAME, name):
        raise ValueError("a name of small letters, digits and dashes, or empty")
    return name


HOST_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
"""A host's name, or an IPv4 address (RFC 1123)."""


def _node_addresses(value: Any) -> list[str]:
    words = cast("list[Any]", value) if isinstance(value, list) else str(value).split(",")
    hosts = [str(word).strip().lower() for word in words if str(word).strip()]
    if not all(re.fullmatch(HOST_NAME, host) for host in hosts):
        raise ValueError("IPv4 addresses or host names, separated by commas")
    return hosts


_QUIET_HOURS = r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d"


def _quiet_hours(value: Any) -> str:
    text = str(value or "").strip()
    begin, _, end = text.partition("-")
    if text and (not isinstance(value, str) or not re.fullmatch(_QUIET_HOURS, text) or begin == end):
        raise ValueError("a time of day such as 22:00-07:00, or empty")
    return text


_ORIGIN = r"https?://[A-Za-z0-9.\[\]:-]{1,200}"


def _origins(value: Any) -> list[str]:
    words = cast("list[Any]", value) if isinstance(value, list) else str(value).split(",")
    origins = [str(word).strip().rstrip("/") for word in words if str(word).strip()]
    if not all(origin == "*" or re.fullmatch(_ORIGIN, origin) for origin in origins):
        raise ValueError("origins such as http://localhost:3000,https://app.example, or * for all")
    return origins


def _aliases(value: Any) -> dict[str, str]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    aliases = {str(name).strip(): str(tier).strip() for name, tier in pairs.items()}
    if not all(re.fullmatch(_ALIAS, name) and tier for name, tier in aliases.items()):
        raise ValueError("pairs of a model name and a tier, such as gpt-5=standard,o3*=fast")
    return aliases


MOST_RANKS = 16


def _ranks(value: Any) -> dict[str, int]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    counts = {str(tier).strip(): str(count).strip() for tier, count in pairs.items()}
    if not all(tier and count.isdecimal() and 2 <= int(count) <= MOST_RANKS for tier, count in counts.items()):  # noqa: PLR2004 - one is no split
        raise ValueError(f"pairs of a tier and a number from 2 to {MOST_RANKS}, such as longctx=3")
    return {tier: int(count) for tier, count in counts.items()}


def _engines(value: Any) -> dict[str, str]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    engines = {str(tier).strip(): str(engine).strip() for tier, engine in pairs.items()}
    if not all(tier and engine in (AUTO, *ENGINES) for tier, engine in engines.items()):
        raise ValueError(f"pairs of a tier and one of {', '.join((AUTO, *ENGINES))}, such as fast=vllm-mlx")
    return engines


_SPAN = r"(\d{1,9})\s*([smhd]?)"
_SPAN_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_SPAN_S = 365 * 86_400


def _span(low: int) -> Callable[[Any], int]:
    """Parse a time span of at least `low` seconds, as a number of seconds or with a unit."""

    def parse(value: Any) -> int:
        match = None if isinstance(value, bool) else re.fullmatch(_SPAN, str(value).strip())
        span_s = int(match[1]) * _SPAN_S[match[2]] if match else -1
        if not low <= span_s <= LONGEST_SPAN_S:
            raise ValueError(f"a time from {low} s to a year, such as 90, 30s, 30m or 2h")
        return span_s

    return parse


def _span_or_off(value: Any) -> int | str:
    if value is False or str(value).strip().lower() == OFF:  # YAML reads a bare `off` as false
        return OFF
    try:
        return _span(1)(value)
    except ValueError as problem:
        raise ValueError(f"{problem}, or {OFF}") from problem


def _size_or_off(value: Any) -> int | str:
    if value is False or str(value).strip().lower() == OFF:
        return OFF
    try:
        return _number(1, 10_000)(value)
    except ValueError as problem:
        raise ValueError(f"{problem}, or {OFF}") from problem


def _idle_stops(value: Any) -> dict[str, int | str]:
    pairs = cast("dict[Any, Any]", value) if isinstance(value, dict) else _pairs(str(value))
    try:
        return {_service(str(name).strip()): _span_or_off(span) for name, span in pairs.items()}
    except ValueError as problem:
        raise ValueError(f"pairs of a tier and a time or {OFF}, such as fast=30m,longctx=2h") from problem


def _service(name: str) -> str:
    if not re.fullmatch(_ALIAS, name):
        raise ValueError(name)
    return name


def _models(value: Any) -> list[str]:
    words = cast("list[Any]", value) if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip() for word in words if str(word).strip()]
    if not all(re.fullmatch(_ALIAS, name) for name in names):
        raise ValueError("names of models, such as qwen3.5-4b,mlx-community/gemma-3-4b-it-4bit")
    return list(dict.fromkeys(names))


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


_ALIAS = r"[A-Za-z0-9][A-Za-z0-9._:/*-]{0,99}"
LARGEST_CAP_USD = 1000
LONGEST_VALUE = 80
"""Letters of a wrong value that a message repeats."""
PORTS = ("litellm-port", "page-port", "front-port", "tier-port-base")
BESIDE_TIERS = PORTS[:3]
"""Those of the services beside the tiers."""
GOOD = "settings.json"
"""The last valid settings, as state.config.good names them."""
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
    Setting("tier-ranks", {}, "Processes that the model of a single tier is split over (docs/engines.md).",
            _ranks, applies="mlxq up"),
    Setting("tier-defaults", {}, "What the gateway fills in for single tiers where a request says nothing.",
            _tier_defaults, applies="mlxq up"),
    Setting("thinking-budget", 4096, "Most tokens that a model thinks before it answers, where a request says nothing.",
            _number(1, LONGEST_ANSWER), applies="mlxq up"),
    Setting("default-quant", "int4", "Quant to use unless another is requested.",
            _choice("int4", "int8", "bf16"), applies="mlxq setup"),
    Setting("memory-budget-pct", AUTO, "Share of memory that models may use, in percent; auto = all that is usable.",
            _share, applies="mlxq setup"),
    Setting("litellm-port", 4000, "Port of the gateway.", PORT, applies="mlxq up"),
    Setting("gateway-host", "127.0.0.1",
            "Address to listen on besides 127.0.0.1, for other machines; requires an API key.",
            _address, applies="mlxq up"),
    Setting("gateway-tls", False, "Encrypt what other machines ask; `mlxq connect network` says how they trust it.",
            _switch, applies="mlxq up"),
    Setting("node-name", "", "Name of this machine in a fleet; empty = what its host's name comes to.", _node_name),
    Setting("node-addresses", [],
            "IPv4 addresses or host names by which other nodes of the fleet reach this one; empty = all that it has.",
            _node_addresses),
    Setting("allowed-origins", [],
            "Web pages whose scripts may read the gateway's answers, such as http://localhost:3000; empty = none.",
            _origins, applies="mlxq up"),
    Setting("allow-remote-images", False,
            "Fetch images that requests link to over https, from public addresses, for models that take images.",
            _switch, applies="mlxq up"),
    Setting("aliases", {}, "Model names that clients send, mapped to tiers; added to the built-in ones.",
            _aliases, applies="mlxq up"),
    Setting("page-port", 4001, "Port of the `mlxq dashboard` page on 127.0.0.1; 0 = off.", _port_or_off,
            applies="mlxq up"),
    Setting("front", False, "Run a front on this machine: one address before all nodes of the fleet.",
            _switch, applies="mlxq up"),
    Setting("front-port", 4100, "Port of the front.", PORT, applies="mlxq up"),
    Setting("front-host", "127.0.0.1",
            "Address on which the front listens besides 127.0.0.1, for other machines; requires an API key.",
            _address, applies="mlxq up"),
    Setting("front-redis", "",
            "Redis that two fronts share, such as redis://:PASSWORD@10.0.0.5:6379/0; empty = each stands alone.",
            _redis, secret=True, applies="mlxq up"),
    Setting("tier-port-base", 8000, "Port of the first engine; the others follow.", PORT, applies="mlxq setup"),
    Setting("model-dir", None, "Folder for weights; default MLXQ_HOME/models.", _folder, applies="mlxq setup"),
    Setting("cache-max-gb", 10, "Most that engines keep of prompts on disk for their next start, in GB; 0 = none.",
            _number(0, 10_000), applies="mlxq up"),
    Setting("check-updates", False, "Ask the package index once a day for a newer mlxq; status and doctor show it.",
            _switch),
    Setting("idle-stop", 1800, "How long a model that was loaded on demand stays after its last use; off = for ever.",
            _span_or_off),
    Setting("tier-idle-stop", {}, "The same for single tiers, which stay for ever where it is not set.", _idle_stops),
    Setting("pinned", [], "Models on demand that are never stopped for being idle or to make room (`mlxq pin`).",
            _models),
    Setting("min-stay", 30, "How long a model that was just loaded is not stopped to make room for another.", _span(0)),
    Setting("load-timeout", 300, "How long a request waits for its model to be loaded.", _span(1)),
    Setting("pull-on-demand", "off",
            "Most to download, in GB, when a request asks for a model that is not on this disk; off = nothing.",
            _size_or_off),
    Setting("auto-health-check", True, "Restart services that hang or crash.", _switch),
    Setting("watch-interval", 2, "Seconds between health checks; exits are detected immediately regardless.",
            _number(1, 3600)),
    Setting("max-restarts", 5, "Exits allowed in ten minutes; beyond these it is a crash loop: removed from routing.",
            _number(1, 100)),
    Setting("restart-delay", 1, "Seconds before the second restart in a row; doubled before each further one.",
            _number(1, 60)),
    Setting("keep-chats", True, "Keep the last `mlxq chat` on a terminal, for --continue, and the prompts typed in it.",
            _switch),
    Setting("quiet-hours", "", "Local time during which notifications wait, such as 22:00-07:00; empty = none.",
            _quiet_hours),
    Setting("bulk-window", "", "Local time during which batches are answered, such as 22:00-07:00; empty = always.",
            _quiet_hours),
    Setting("log-max-size-mb", 50, "Logs larger than this are rotated, in MB.", _number(1, 10_000)),
    Setting("log-max-files", 3, "Rotated logs to keep for each service.", _number(1, 100)),
)  # fmt: skip
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


class Settings:
    """All settings as they are now."""

    def __init__(self, values: Mapping[str, Value], problems: Sequence[ConfigProblem] = ()) -> None:
        self.values = values
        self.problems = tuple(problems)

    def __getitem__(self, name: str) -> Any:
        """Return one setting's value."""
        return self.values[name].value

    def models(self, home: Home) -> Path:
        """Return the folder for weights. Raises UsageProblem where it is not known: weights go nowhere else."""
        problem = self.unknown("model-dir")
        if problem is not None:
            raise problem.error()
        return Path(self["model-dir"]) if self["model-dir"] else home.models

    def unknown(self, name: str) -> ConfigProblem | None:
        """Return the problem for which a setting has its default although the user may have set it."""
        if self.values[name].source != "default":
            return None
        return next((problem for problem in self.problems if name in problem.names), None)


def find(name: str) -> Setting:
    """Return the setting of that name. Raises UsageProblem with the nearest name."""
    if name in BY_NAME:
        return BY_NAME[name]
    raise UsageProblem(f"There is no setting {name!r}." + _nearest(name), hint="mlxq config list")


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f" Did you mean {near[0]}?" if near else ""


_loaded: dict[Path, tuple[Any, Settings]] = {}
"""The settings of a home, and the version of the file and the environment that they were read from."""


def load(home: Home) -> Settings:
    """Return all settings. What is wrong is in `problems`, and has the last valid value or the default."""
    now = version(home)
    if home.root not in _loaded or _loaded[home.root][0] != now:
        _loaded[home.root] = (now, _load(home))
    return _loaded[home.root][1]


def version(home: Home) -> Any:
    """Return what changes whenever the settings may have changed."""
    environment = tuple(os.environ.get(setting.variable) for setting in SETTINGS)
    try:
        stat = home.config.stat()
    except OSError as problem:
        return environment, problem.errno, home.config.is_symlink()
    return environment, stat.st_ino, stat.st_mtime_ns, stat.st_size, stat.st_mode


def _load(home: Home) -> Settings:
    """Read the file, and keep its valid part for the time when it is wrong."""
    before = _last_valid(home)
    try:
        entries = _parsed(home, emptied=bool(before))
    except Unreadable as problem:
        return _Reading(home.config, before, None).settings([_unreadable(home.config, problem)])
    read = _Reading(home.config, before, entries).settings()
    _keep(home, read, before)
    return read


def _parsed(home: Home, *, emptied: bool) -> list[ConfigEntry]:
    """Return what config.yaml holds. Raises Unreadable, also for an empty file that had settings (`emptied`)."""
    text = texts.read(home.config)
    if text == "" and emptied:
        raise Unreadable("it is empty")
    return mapping.parse(text) if text else []


def _entries(home: Home) -> list[ConfigEntry]:
    """Return what config.yaml holds, or the last valid settings where it is empty. Raises Unreadable."""
    empty = home.config.is_file() and not home.config.stat().st_size
    return _last_valid_entries(home) if empty else _parsed(home, emptied=False)


def _last_valid_entries(home: Home) -> list[ConfigEntry]:
    return [ConfigEntry(name, 0, value) for name, value in _last_valid(home).items()]


def _last_valid(home: Home) -> dict[str, Any]:
    """Return the settings of the last valid file, each checked again: a newer mlxq may have other rules."""
    try:
        document: dict[str, Any] = json.loads(good.read(home, GOOD) or "{}")
        items = document.items()
    except (ValueError, RecursionError, AttributeError):
        return {}
    valid: dict[str, Any] = {}
    for name, value in items:
        if name in BY_NAME:
            with contextlib.suppress(ValueError):
                valid[name] = BY_NAME[name].parse(value)
    return valid


def _keep(home: Home, read: Settings, before: Mapping[str, Any]) -> None:
    """Keep what now counts of the file, as JSON, which takes no library to read."""
    valid = {
        name: before.get(name) if value.source == "environment" else value.value
        for name, value in read.values.items()
        if value.source in {"file", "last valid file"} or (value.source == "environment" and name in before)
    }
    if valid or before:
        good.keep(home, GOOD, json.dumps(valid, indent=1))


def _unreadable(path: Path, problem: Unreadable) -> ConfigProblem:
    line = f", line {problem.line}" if problem.line else ""
    return ConfigProblem(
        f"Cannot read the settings in {path}{line}: {problem.reason}.",
        "The last valid settings count; the file was left as it is.",
        "mlxq config edit",
        tuple(BY_NAME),
    )


@dataclass(frozen=True, eq=False)
class _Reading:
    """One reading of a settings file."""

    path: Path
    before: Mapping[str, Any]
    """The last valid values."""
    entries: Sequence[ConfigEntry] | None
    """What the file holds; None for one that cannot be read."""

    def settings(self, problems: Sequence[ConfigProblem] = ()) -> Settings:
        """Return each setting's value, and everything that is wrong."""
        separate = self.separate()
        return self._with_ports_apart(separate, [*problems, *self._warnings(), *separate.problems])

    def separate(self) -> Settings:
        """Return the settings, each checked on its own."""
        read = {setting.name: self._value(setting) for setting in SETTINGS}
        values = {name: value for name, (value, _) in read.items()}
        return Settings(values, [problem for _, problem in read.values() if problem])

    def _value(self, setting: Setting) -> tuple[Value, ConfigProblem | None]:
        text = os.environ.get(setting.variable)
        if text is None:
            return self._value_of_file(setting)
        try:
            return Value(setting, setting.parse(text), "environment"), None
        except ValueError as problem:
            used = self._value_of_file(setting)[0]
            message = f"{setting.variable}: {setting.name} must be {problem}, not {_brief(setting, text)}."
            return used, self._problem(message, used, f"unset {setting.variable}")

    def _value_of_file(self, setting: Setting) -> tuple[Value, ConfigProblem | None]:
        if self.entries is None:
            return self._fallback(setting), None
        entry = next((entry for entry in reversed(self.entries) if entry.name == setting.name), None)
        if entry is None:
            return Value(setting, setting.default, "default"), None
        try:
            return Value(setting, setting.parse(entry.read()), "file"), None
        except ValueError as problem:
            used = self._fallback(setting)
            where = f"{self.path}, line {entry.line}"
            message = f"{where}: {setting.name} must be {problem}, not {_brief(setting, entry.value)}."
            return used, self._problem(message, used, f"mlxq config reset {setting.name}")

    def _fallback(self, setting: Setting) -> Value:
        if setting.name in self.before:
            return Value(setting, self.before[setting.name], "last valid file")
        return Value(setting, setting.default, "default")

    def _problem(self, message: str, used: Value, hint: str) -> ConfigProblem:
        name = used.setting.name
        value = "its default" if used.source == "default" else f"the last valid value, {used.shown}"
        return ConfigProblem(message, f"{name} has {value}.", hint, (name,))

    def _warnings(self) -> Iterator[ConfigProblem]:
        """Yield what is odd and changes no value: settings that this mlxq does not have, or that are set twice."""
        for entry in self.entries or ():
            where = f"{self.path}, line {entry.line}"
            if entry.name not in BY_NAME:
                import shlex

                yield ConfigProblem(
                    f"{where}: this mlxq has no setting {entry.name!r}." + _nearest(entry.name),
                    "It is kept, and has no effect.",
                    f"mlxq config reset {shlex.quote(entry.name)}",
                    warning=True,
                )
            elif entry is not next(other for other in reversed(self.entries or ()) if other.name == entry.name):
                message = f"{where}: {entry.name} is set again below."
                yield ConfigProblem(message, "The last line counts.", "mlxq config edit", warning=True)

    def _with_ports_apart(self, read: Settings, problems: list[ConfigProblem]) -> Settings:
        """Return the settings with the last valid ports, or the default ones, where two ports are the same."""
        clash = port_clash(read)
        if clash is None:
            return Settings(read.values, problems)
        values = dict(read.values) | {name: self._fallback(BY_NAME[name]) for name in PORTS}
        done = f"mlxq uses {', '.join(f'{name} {values[name].value}' for name in PORTS)}."
        hint = clash.hint or "mlxq config edit"
        return Settings(values, [*problems, ConfigProblem(f"{self.path}: {clash.message}", done, hint, PORTS)])


def _brief(setting: Setting, value: Any) -> str:
    """Return a value that is not allowed, as far as a message may repeat it."""
    text = "that value" if setting.secret else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def port_clash(read: Settings) -> UsageProblem | None:
    """Return what is wrong with the ports together, or None."""
    tiers = range(read["tier-port-base"], read["tier-port-base"] + TIER_PORTS)
    for name in BESIDE_TIERS:
        if read[name] in tiers:
            return UsageProblem(
                f"{name} {read[name]} is one of the tiers' ports ({tiers[0]} to {tiers[-1]}, from tier-port-base).",
                hint=f"mlxq config set {name} {tiers[-1] + 1}",
            )
    for first, second in itertools.combinations(BESIDE_TIERS, 2):
        if read[first] == read[second]:
            port = read[second]
            hint = f"mlxq config set {second} {port + 1}"
            return UsageProblem(f"{first} and {second} are both {port}.", hint=hint)
    return None


def check(setting: Setting, value: Any) -> Any:
    """Return the value that was meant. Raises UsageProblem."""
    try:
        return setting.parse(value)
    except ValueError as problem:
        raise UsageProblem(
            f"{setting.name} must be {problem}, not {_brief(setting, value)}.", hint=f"mlxq config get {setting.name}"
        ) from problem


def write(home: Home, name: str, value: Any) -> Any:
    """Set one setting in config.yaml and return the value; what else is in the file is kept, also what is wrong.

    Raises UsageProblem for a value that is not allowed, or a file that cannot be read.
    """
    with _changing(home):
        return _write(home, name, value)


def change(home: Home, name: str, new: Callable[[Any], Any]) -> None:
    """Set one setting to what `new` makes of its value, as `write` does."""
    with _changing(home):
        _write(home, name, new(load(home)[name]))


def _changing(home: Home) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time change config.yaml. Raises MlxqError where it cannot be written."""
    path = home.make().config
    return files.changing(path, lambda problem: _unwritten(path, problem))


def _write(home: Home, name: str, value: Any) -> Any:
    valid = check(find(name), value)
    try:
        entries = _entries(home)
    except Unreadable as problem:
        raise _unreadable(home.config, problem).error() from problem
    changed = [*(entry for entry in entries if entry.name != name), ConfigEntry(name, 0, valid)]
    clash = port_clash(_Reading(home.config, _last_valid(home), changed).separate())
    if clash is not None and name in PORTS:
        raise clash
    _save(home, changed)
    return valid


def reset(home: Home, name: str | None) -> Path | None:
    """Bring one setting, or all, back to the default, whatever is in the place of config.yaml.

    Return where the old file is if it was moved aside: all are reset, or it cannot be read; in that case the other
    settings have their last valid values. Raises UsageProblem for a name that is neither a setting nor in the file.
    """
    with _changing(home):
        return files.set_aside(home.config) if name is None else _reset(home, name)


def _reset(home: Home, name: str) -> Path | None:
    try:
        entries = _entries(home)
    except Unreadable:
        find(name)
        entries = _last_valid_entries(home)
        aside = files.set_aside(home.config)
        _save(home, [entry for entry in entries if entry.name != name])
        return aside
    if name not in {entry.name for entry in entries}:
        find(name)
    _save(home, [entry for entry in entries if entry.name != name])
    return None


def _save(home: Home, entries: Sequence[ConfigEntry]) -> None:
    """Write config.yaml. What YAML could not make a value of gets the one that counts instead, or is left out."""
    valid, last = _last_valid(home), {entry.name: entry for entry in entries}
    values = {name: entry.value for name, entry in last.items() if not entry.fault}
    values |= {name: valid[name] for name, entry in last.items() if entry.fault and name in valid}
    write_private(home.config, as_yaml(values))
    load(home)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return `name: value` lines."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=True) if values else "# No setting differs from its default.\n"


def last_valid_text(home: Home) -> str:
    """Return the last valid settings as YAML."""
    return as_yaml(_last_valid(home))


def problems_of(home: Home, path: Path) -> list[ConfigProblem]:
    """Return what is wrong with a file that is to take the place of config.yaml."""
    try:
        entries = mapping.parse(texts.read(path) or "")
    except Unreadable as problem:
        return [_unreadable(path, problem)]
    return list(_Reading(path, _last_valid(home), entries).settings().problems)


def replace_file(home: Home, path: Path, expected: object) -> bool:
    """Put a file in the place of config.yaml, whatever is there; what it was is config.yaml.old. Raises MlxqError.

    Return whether config.yaml still had the version `expected`; where not, it is left.
    """
    with _changing(home):
        if version(home) != expected:
            return False
        _replace_file(home, path)
    return True


def _replace_file(home: Home, path: Path) -> None:
    try:
        if home.config.is_dir() and not home.config.is_symlink():
            files.set_aside(home.config)
        elif os.path.lexists(home.config):
            home.config.replace(home.config.with_suffix(".yaml.old"))
        path.chmod(0o600)
        path.replace(home.config)
    except OSError as problem:
        raise MlxqError(f"Cannot write {home.config}: {problem.strerror}.", hint=f"ls -la {home.root}") from problem
    load(home)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: temp, fsync, rename. Raises MlxqError where that is not possible."""
    try:
        files.replace_private(path, text)
    except OSError as problem:
        raise _unwritten(path, problem) from problem


def _unwritten(path: Path, problem: OSError) -> MlxqError:
    message = f"Cannot write {path}: {problem.strerror}."
    return MlxqError(message, done="It is as it was.", hint=f"ls -la {path.parent}")
