"""`mlxq config`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import click

from mlxq import jobs_client, options, render
from state import settings
from state.errors import MlxqError, UsageProblem
from state.paths import get_home

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HOST = "gateway-host"


class SettingName(click.ParamType[str]):
    """A setting's name; state.settings answers a wrong one with the nearest."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the table of settings."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(row.name, help=row.help) for row in settings.SETTINGS if incomplete in row.name]


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Read and change settings.

    A value comes from the environment (MLXQ_<NAME>), else from config.yaml, else from the built-in default. Where one
    is wrong, the last valid value is used, and `mlxq status` shows the problem.
    """


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List all settings with their values and sources."""
    current = settings.load(get_home())
    values = list(current.values.values())
    if as_json:
        config = [problem.document() for problem in current.problems]
        render.data({"settings": [_row(value) for value in values], "config": config})
        return
    render.table(
        ["SETTING", "VALUE", "SOURCE", "MEANING"],
        [[value.setting.name, _text(value.shown), value.source, value.setting.help] for value in values],
    )
    _problems(current)


def _problems(current: settings.Settings) -> None:
    """Show what is wrong with the settings, each with its cure."""
    for problem in current.problems:
        render.say(f"\n{problem.message} {problem.done}\nCure: {problem.hint}")


@command.command()
@click.argument("name", type=SettingName())
@options.as_json
def get(name: str, *, as_json: bool) -> None:
    """Print the value of NAME."""
    current = settings.load(get_home())
    value = current.values[settings.find(name).name]
    _problems(settings.Settings({}, [problem for problem in current.problems if name in problem.names]))
    if as_json:
        render.data(_row(value))
    else:
        click.echo(_text(value.shown))


@command.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("name", type=SettingName())
@click.argument("value")
def put(name: str, value: str) -> None:
    """Set NAME to VALUE.

    With `-` as VALUE, read it from standard input, which keeps a key out of the shell history.
    """
    from state import keys

    setting = settings.find(name)
    text = sys.stdin.readline().strip() if value == "-" else value
    if setting.name == HOST:
        keys.admit(keys.file(get_home()), settings.check(setting, text))
    settings.write(get_home(), name, text)
    now = settings.load(get_home()).values[name]
    render.say(f"{name} = {_text(now.shown)}")
    if setting.name == HOST and _is_open(settings.load(get_home())):
        render.say("Other machines are answered without encryption; mlxq config set gateway-tls true changes that.")
    if now.source == "environment":
        render.say(f"{setting.variable} in the environment overrides this.")
    if setting.applies:
        render.next_step(setting.applies if _is_set_up() else "mlxq setup")


@command.command()
@click.argument("name", type=SettingName(), required=False)
@click.option("--all", "everything", is_flag=True, help="Reset all settings.")
def reset(name: str | None, *, everything: bool) -> None:
    """Reset NAME, or all settings, to the default.

    Works on any file. One that cannot be read is moved aside, and the other settings get their last valid values.
    """
    if (name is None) != everything:
        raise click.UsageError("Name a setting, or pass --all.")
    aside = settings.reset(get_home(), name)
    backup = f" The old file is {aside}." if aside else ""
    render.say(f"Reset {name or 'all settings'} to the default.{backup}")


@command.command()
def edit() -> None:
    """Edit the settings in $VISUAL or $EDITOR.

    The file is checked afterwards; the old one stays in use until the new one is right, and is kept as config.yaml.old.
    """
    from mlxq import config_edit

    home = get_home()
    draft = config_edit.begin(home)
    while True:
        config_edit.run_editor(draft)
        problems = config_edit.check(home, draft)
        if not problems:
            break
        for problem in problems:
            render.say(f"{problem.message}")
        if not sys.stdin.isatty() or not click.confirm("Edit again", default=True, err=True):
            raise UsageProblem(
                "The settings were not changed.", done=f"What you wrote is in {draft.path}.", hint="mlxq config edit"
            )
    changed = config_edit.finish(home, draft)
    render.say("The settings were changed." if changed else "Nothing was changed.")
    _problems(settings.load(home))
    if changed:
        render.next_step("mlxq up" if _is_set_up() else "mlxq setup")


def _is_open(values: settings.Settings) -> bool:
    """Return whether other machines are answered without encryption."""
    return values[HOST] != "127.0.0.1" and not values["gateway-tls"]


def _is_set_up() -> bool:
    """Return whether there are tiers to start again; a database that cannot be read has none that can be."""
    from state import stack

    try:
        with jobs_client.reading(get_home()) as db:
            return bool(stack.tiers(db))
    except MlxqError:
        return False


def _row(value: settings.Value) -> dict[str, Any]:
    return {"name": value.setting.name, "value": value.shown, "source": value.source, "help": value.setting.help}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(cast("list[str]", value))
    if isinstance(value, dict):
        return ",".join(f"{name}={_text(entry)}" for name, entry in cast("dict[str, Any]", value).items())
    return "" if value is None else str(value)
