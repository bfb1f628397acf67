"""Generate parts of the documents from the program. Run by cog (`just docs`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from click.testing import CliRunner
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from catalog import chips, units
from catalog.engines import EngineEntry, ModelKind
from catalog.engines import every as engine_entries
from catalog.explain import tokens
from catalog.load import entries
from catalog.machine import Machine
from catalog.model import Model, Quant
from catalog.quality import quality
from catalog.score import recommend
from mlxq import __version__
from mlxq.autostart import launchd as launchd_unit
from mlxq.autostart import systemd as systemd_unit
from mlxq.autostart.unit import Unit, environment
from mlxq.cli import SECTIONS, mlxq
from mlxq.web.metrics import Rows
from state import settings
from state.db import open_database
from state.paths import Home
from state.settings import Setting
from tasks.kinds import KINDS

WIDTH = 96
PACKAGES = ("mlxq", "tasks", "catalog", "state")


def overview() -> str:
    """Return the table of all commands."""
    return table(
        ["Command", "What it does"],
        [[f"`mlxq {name}`", text] for section in SECTIONS.values() for name, text in section.items()],
    )


def rooms() -> str:
    """Return the table of all packages, with the first paragraph of their docstrings."""
    root = Path(__file__).parents[1]
    files = sorted(file for name in PACKAGES for file in (root / name).rglob("__init__.py"))
    return table(["Folder", "Content"], [[f"`{file.parent.relative_to(root)}/`", _docstring(file)] for file in files])


def _docstring(file: Path) -> str:
    paragraph, _, _ = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")
    return paragraph.replace("\n", " ")


def commands() -> str:
    """Return the `--help` text of every command."""
    return "\n".join(f"## {' '.join(['mlxq', *path])}\n\n```text\n{help_of(path)}```\n" for path in paths())


def paths(group: click.Command = mlxq, prefix: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the name of every command as a list of words; a group comes before its subcommands."""
    yield list(prefix)
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from paths(command, [*prefix, name])


def help_of(path: Sequence[str]) -> str:
    """Return the `--help` text of one command."""
    arguments = [*path, "--help"]
    result = CliRunner().invoke(mlxq, arguments, prog_name="mlxq", terminal_width=WIDTH, max_content_width=WIDTH)
    assert result.exit_code == 0, result.output
    return result.output


def metrics() -> str:
    """Return the table of all metrics, in the order in which they are served."""
    with TemporaryDirectory() as folder, closing(open_database(Home(Path(folder)).make())) as db:
        families = list(Rows(db).collect())
    return table(
        ["Metric", "Type", "Labels", "Meaning"],
        [
            [
                f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
                family.type,
                ", ".join(f"`{label}`" for label in _labels(family)) or "-",
                family.documentation,
            ]
            for family in families
        ],
    )


def _labels(family: Metric) -> Sequence[str]:
    assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
    return family._labelnames  # noqa: SLF001 (it is told nowhere else while there are no samples)


MANUAL = Path(__file__).parent / "prefix" / "share" / "man" / "man1" / "mlxq.1"
"""Installed below the prefix of the environment, where man(1) looks for the programs of a PATH."""


def manual() -> str:
    """Return the manual page: the help of all commands, in the macros of man(7)."""
    named = [path for path in paths() if path]
    commands = [part for path in named for part in (f'.SS "mlxq {" ".join(path)}"', *_verbatim(help_of(path)))]
    lines = [
        '.\\" Generated from the help of the commands: just docs',
        f'.TH MLXQ 1 "" "mlxq {__version__}" "User commands"',
        *(".SH NAME", "mlxq \\- several models behind one endpoint, every operation a durable job"),
        *(".SH SYNOPSIS", ".B mlxq", "[\\fIOPTION\\fR]... [\\fICOMMAND\\fR [\\fIARGUMENT\\fR]...]"),
        *(".SH DESCRIPTION", *_verbatim(help_of([]))),
        *(".SH COMMANDS", *commands),
        *(".SH ENVIRONMENT", ".TP", ".B MLXQ_HOME", "Folder of mlxq's files, ~/.mlxq by default."),
        *(".TP", ".B MLXQ_\\fISETTING\\fR", "Overrides a setting; mlxq config list shows their names."),
        *(".TP", ".BR NO_COLOR ,\\~ FORCE_COLOR", "Turn colors off, or on where there is no terminal."),
        *(".SH FILES", ".TP", ".I ~/.mlxq/config.yaml", "Settings, as mlxq config edit shows them."),
        *(".TP", ".I ~/.mlxq/logs", "Logs, as mlxq logs prints them."),
    ]
    return "\n".join([*lines, ""])


def _verbatim(text: str) -> list[str]:
    """Return lines that man(1) shows as they are; letters beyond ASCII by their code points (groff_char(7))."""
    special = {"\\": "\\e", "-": "\\-", "'": "\\(aq"}
    escaped = [
        "".join(special.get(letter, letter if letter.isascii() else f"\\[u{ord(letter):04X}]") for letter in line)
        for line in text.rstrip().split("\n")
    ]
    return [".nf", *(f"\\&{line}" if line[:1] in {".", "'"} else line for line in escaped), ".fi"]


def all_settings() -> str:
    """Return the table of all settings."""
    return table(
        ["Setting", "Default", "Allowed", "Meaning", "Variable", "Takes effect after"],
        [
            [
                f"`{setting.name}`",
                _default(setting),
                _allowed(setting),
                setting.help,
                f"`{setting.variable}`",
                f"`{setting.applies}`" if setting.applies else "at once",
            ]
            for setting in settings.SETTINGS
        ],
    )


def _default(setting: Setting) -> str:
    if setting.default in ("", None, {}):
        return "empty"
    return f"`{str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}`"


def _allowed(setting: Setting) -> str:
    """Return the allowed values, from the setting's own error message."""
    try:
        setting.parse(object())
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{setting.name} accepts any value")


def models() -> str:
    """Return the table of the catalog's models, smallest first. Sizes are those of the files."""
    current = [model for model in entries().values() if not model.retired]
    rows = sorted(current, key=lambda model: (model.total_params_b, model.id))
    return table(
        ["Model", "Parameters", "int4", "int8", "Context", "Quality", "Thinks", "Tools", "Images", "License"],
        [_model(model) for model in rows],
    )


def _model(model: Model) -> list[str]:
    active = f" ({model.active_params_b:g} B active)" if model.moe else ""
    rated = quality(model)
    return [
        f"`{model.id}`",
        f"{model.total_params_b:g} B{active}",
        _size(model.quants.get("int4")),
        _size(model.quants.get("int8")),
        f"{model.context:,}",
        f"{rated.points:.0f}" if rated.benchmark else "-",
        "yes" if model.reasoning_parser else "no",
        "yes" if model.tool_calling else "no",
        "yes" if model.vision else "no",
        model.licence,
    ]


STACKS = (
    ("M2", 8), ("M4", 16), ("M4 Pro", 24), ("M1 Max", 32), ("M4 Max", 36), ("M4 Pro", 48), ("M4 Max", 64),
    ("M2 Max", 96), ("M4 Max", 128), ("M3 Ultra", 256), ("M3 Ultra", 512),
)  # fmt: skip
"""The Macs whose default stacks are shown, with their memory in GB."""

METAL_SHARES = ((36, 0.667), (64, 0.75), (1024, 0.8))
"""Up to how many GB of memory the oldest macOS gives the GPU which share."""


def stacks(intent: str = "balanced") -> str:
    """Return the default stack of a Mac of each size of memory, as `mlxq models --recommend` would choose it there."""
    rows = [[f"{gigabytes} GB, {chip}", *_stack(chip, gigabytes, intent)] for chip, gigabytes in STACKS]
    return table(["Mac", "standard", "fast", "longctx", "Memory"], rows)


def _stack(chip: str, gigabytes: int, intent: str) -> list[str]:
    """Return the cells of one Mac: its tiers, and what they take of what is planned for."""
    made = recommend(a_mac(chip, gigabytes), entries(), intent)
    told = [
        f"as {pick.shares}" if pick.shares else f"`{pick.model}` {pick.quant}, {tokens(pick.context)}"
        for pick in made.picks
    ]
    return [*told, f"{units.memory(made.total)} of {units.memory(made.budget)}"]


def a_mac(chip: str, gigabytes: int) -> Machine:
    """Return the fullest bin of a chip that was sold with so much memory, with macOS's smallest share for the GPU."""
    one = [one for one in chips.bins()[chip] if gigabytes in one.memory][-1]
    size = gigabytes << 30
    share = next(share for most, share in METAL_SHARES if gigabytes <= most)
    return Machine(
        one.chip, "metal", "macOS", size, int(share * size), one.bandwidth, "table", one.fp16, one.gpu, one.cpu
    )


def retired() -> str:
    """Return the models that are offered no more, and what is better."""
    rows = sorted((model for model in entries().values() if model.retired), key=lambda model: model.id)
    return table(["Model", "Why"], [[f"`{model.id}`", model.retired] for model in rows])


def _size(quant: Quant | None) -> str:
    return f"{units.gigabytes_of_files(quant.bytes)} GB" if quant else "-"


def kinds() -> str:
    """Return the table of all kinds of jobs."""
    return table(
        ["Kind", "What it does", "Queue", "Tries", "Time limit"],
        [
            [f"`{kind.name}`", kind.meaning, kind.queue, str(kind.max_attempts), f"{kind.limit_s:,.0f} s"]
            for kind in KINDS.values()
        ],
    )


def launchd() -> str:
    """Return the launchd property list of an example user."""
    return f"```xml\n{launchd_unit.text(_unit('/Users/you')).decode()}```\n"


def systemd() -> str:
    """Return the systemd unit of an example user."""
    return f"```ini\n{systemd_unit.text(_unit('/home/you'))}```\n"


def _unit(user_folder: str) -> Unit:
    home = Home(Path(user_folder) / ".mlxq")
    return Unit(
        program=[f"{user_folder}/.local/bin/mlxq", "worker", "--wait"],
        home=home,
        environment=environment({"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": user_folder}, home),
        user_home=Path(user_folder),
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def engines() -> str:
    """Return what each engine can do by itself."""
    known = engine_entries()
    names = list(known)
    plain = [
        ("version", lambda each: each.version),
        (
            "lives in",
            lambda each: (
                "mlxq's environment in a checkout, else its own"
                if each.environment == "mlxq"
                else "an environment of its own"
            ),
        ),
        ("size on disk", lambda each: units.files(each.installed_mb * 1_000_000) if each.installed_mb else "with mlxq"),
        ("resident with the built-in model", lambda each: f"{each.resident_mb} MB"),
        ("dialects relayed as they are", lambda each: ", ".join(_relayed(each))),
        ("dialects made from its chat", lambda each: ", ".join(each.abilities["translated"]) or "none"),
    ]
    rows = [[words, *(str(tell(known[name])) for name in names)] for words, tell in plain]
    for ability in known[names[0]].abilities:
        if ability not in {"dialects", "translated", "thinking_budget", "silence_s", "disk_cache"}:
            told = (known[name].abilities[ability] for name in names)
            rows.append([ability.replace("_", " "), *map(_able, told)])
    found = "\n".join(f"- [{name}]({known[name].home}) {known[name].version}: {known[name].found}." for name in names)
    reasons = [
        f"- {name}'s own {dialect}: {why}."
        for name in names
        for dialect, why in known[name].abilities["translated"].items()
    ]
    return table(["", *names], rows) + "\n\n" + "\n".join([found, *reasons])


def _relayed(engine: EngineEntry) -> list[str]:
    translated = engine.abilities["translated"]
    return [dialect for dialect in engine.abilities["dialects"] if dialect not in translated]


def _able(value: bool | dict[str, bool]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{backend} {_able(able)}" for backend, able in value.items())


def reuse() -> str:
    """Return of which kinds of model each engine reads a prompt once."""
    known = engine_entries()
    rows = [[kind, *(_reused(known[name], kind) for name in known)] for kind in next(iter(known.values())).reuse]
    return table(["Kind of model", *known], rows)


def _reused(engine: EngineEntry, kind: ModelKind) -> str:
    told = engine.reuse[kind]
    kept = kind in engine.disk_cache
    words = [word for word, able in (("turn", told.turn), ("system", told.system), ("restart", kept)) if able]
    return (", ".join(words) or "no") + (" (read)" if kind in engine.unmeasured else "")


if __name__ == "__main__":
    MANUAL.parent.mkdir(parents=True, exist_ok=True)
    MANUAL.write_text(manual())
