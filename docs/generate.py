"""The parts of the documents that are made from the program; cog puts them between its marks (`just docs`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from click.testing import CliRunner

from catalog import units
from catalog.load import entries
from catalog.model import Model, Quant
from mlxq import autostart
from mlxq.cli import SECTIONS, mlxq
from state import settings
from state.paths import Home
from state.settings import Setting
from tasks.kinds import KINDS

WIDTH = 96


def overview() -> str:
    """Give all commands, a line each."""
    return table(
        ["Command", "What it does"],
        [[f"`mlxq {name}`", text] for section in SECTIONS.values() for name, text in section.items()],
    )


def commands() -> str:
    """Give the help of every command, as the program prints it."""
    return "\n".join(f"## {' '.join(['mlxq', *path])}\n\n```text\n{_help(path)}```\n" for path in paths())


def paths(group: click.Command = mlxq, above: Sequence[str] = ()) -> Iterator[list[str]]:
    """Give the words of every command, groups before what they hold."""
    yield list(above)
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            yield from paths(found, [*above, name])


def _help(path: Sequence[str]) -> str:
    done = CliRunner().invoke(mlxq, [*path, "--help"], prog_name="mlxq", terminal_width=WIDTH, max_content_width=WIDTH)
    assert done.exit_code == 0, done.output
    return done.output


def all_settings() -> str:
    """Give every setting: default, what is allowed, its variable, and what makes a change felt."""
    return table(
        ["Setting", "Default", "Allowed", "Meaning", "Variable", "Felt after"],
        [
            [
                f"`{each.name}`",
                _default(each),
                _allowed(each),
                each.help,
                f"`{each.variable}`",
                f"`{each.applies}`" if each.applies else "at once",
            ]
            for each in settings.SETTINGS
        ],
    )


def _default(setting: Setting) -> str:
    if setting.default in ("", None, {}):
        return "empty"
    return f"`{str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}`"


def _allowed(setting: Setting) -> str:
    """Give the setting's own words about what it takes: what it says of a value that nothing takes."""
    try:
        setting.parse(object())
    except ValueError as problem:
        return str(problem)
    raise AssertionError(f"{setting.name} takes anything")


def models() -> str:
    """Give the catalog, smallest first. Sizes are those of the files."""
    rows = sorted(entries().values(), key=lambda each: (each.total_params_b, each.id))
    return table(
        ["Model", "Parameters", "int4", "int8", "Context", "Tools", "Images", "Licence", "Released"],
        [_model(each) for each in rows],
    )


def _model(each: Model) -> list[str]:
    active = f" ({each.active_params_b:g} B active)" if each.moe else ""
    return [
        f"`{each.id}`",
        f"{each.total_params_b:g} B{active}",
        _size(each.quants.get("int4")),
        _size(each.quants.get("int8")),
        f"{each.context:,}",
        "yes" if each.tool_calling else "no",
        "yes" if each.vision else "no",
        each.licence,
        each.released or "-",
    ]


def _size(quant: Quant | None) -> str:
    return f"{units.gigabytes_of_files(quant.bytes)} GB" if quant else "-"


def kinds() -> str:
    """Give every kind of job, with its queue and limits."""
    return table(
        ["Kind", "What it does", "Queue", "Tries", "Time limit"],
        [
            [f"`{kind.name}`", kind.meaning, kind.queue, str(kind.max_attempts), f"{kind.limit_s:,.0f} s"]
            for kind in KINDS.values()
        ],
    )


def launchd() -> str:
    """Give the property list that keeps a worker alive on macOS, for an invented person."""
    return f"```xml\n{autostart.launchd(_unit('/Users/you')).decode()}```\n"


def systemd() -> str:
    """Give the unit that keeps a worker alive on Linux, for an invented person."""
    return f"```ini\n{autostart.systemd(_unit('/home/you'))}```\n"


def _unit(person: str) -> autostart.Unit:
    place = Home(Path(person) / ".mlxq")
    return autostart.Unit(
        program=[f"{person}/.local/bin/mlxq", "worker"],
        home=place,
        environment=autostart.environment({"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": person}, place),
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)
