"""`mlxq config`."""

from __future__ import annotations

import sys
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from mlxq import options, render
from state import keys, settings
from state.paths import get_home

HOST = "gateway-host"


class SettingName(click.ParamType[str]):
    """A setting's name; a wrong one is answered by state.settings, with the nearest."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the table of settings."""
        return [CompletionItem(each.name, help=each.help) for each in settings.SETTINGS if incomplete in each.name]


@click.group(no_args_is_help=True)
def command() -> None:
    """Read and change settings.

    A value comes from the environment (MLXQ_<NAME>), else from config.yaml, else from the built-in default.
    """


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List all settings, their values and where those come from."""
    values = list(settings.load(get_home()).values.values())
    if as_json:
        render.data({"settings": [_row(each) for each in values]})
        return
    render.table(
        ["SETTING", "VALUE", "SOURCE", "MEANING"],
        [[each.setting.name, _text(each.shown), each.source, each.setting.help] for each in values],
    )


@command.command()
@click.argument("name", type=SettingName())
def get(name: str) -> None:
    """Print the value of NAME."""
    setting = settings.find(name)
    click.echo(_text(settings.load(get_home()).values[setting.name].shown))


@command.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("name", type=SettingName())
@click.argument("value")
def put(name: str, value: str) -> None:
    """Set NAME to VALUE.

    `-` reads the value from standard input, which keeps a key out of the shell's history.
    """
    setting = settings.find(name)
    given = sys.stdin.readline().strip() if value == "-" else value
    if setting.name == HOST:
        keys.admit(keys.place(get_home()), settings.check(setting, given))
    settings.write(get_home(), name, given)
    now = settings.load(get_home()).values[name]
    render.say(f"{name} = {_text(now.shown)}")
    if now.source == "environment":
        render.say(f"{setting.variable} in the environment overrides what was written.")
    if setting.applies:
        render.next_step(setting.applies)


@command.command()
@click.argument("name", type=SettingName(), required=False)
@click.option("--all", "everything", is_flag=True, help="Bring all settings back to their defaults.")
def reset(name: str | None, *, everything: bool) -> None:
    """Bring NAME, or all settings, back to the default."""
    if (name is None) != everything:
        raise click.UsageError("Give the NAME of a setting, or --all.")
    settings.reset(get_home(), name)
    kept = f" The old file is {get_home().config}.bad." if everything else ""
    render.say(f"{name or 'All settings'} back to the default.{kept}")


def _row(value: settings.Value) -> dict[str, Any]:
    return {"name": value.setting.name, "value": value.shown, "source": value.source, "help": value.setting.help}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(cast("list[str]", value))
    if isinstance(value, dict):
        return ",".join(f"{name}={tier}" for name, tier in cast("dict[str, str]", value).items())
    return "" if value is None else str(value)
