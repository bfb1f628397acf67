"""The command line: which commands there are, and the one place where an error becomes an exit code.

A command's module is imported when it is run, so that `mlxq --help` loads click and nothing else of weight.
Each command is the function `command` in the module of its name under mlxq.commands: parse, ask, render.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from mlxq import render
from state.errors import DiskFull, Internal, MlxqError, UsageProblem

if TYPE_CHECKING:
    from pathlib import Path

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Start": {
        "setup": "Choose models for this machine, download and start them.",
        "status": "Show the state of every service.",
        "dashboard": "Open the web dashboard.",
        "top": "Show a live view of tiers, requests and jobs.",
        "chat": "Send a prompt to a model and stream the answer.",
    },
    "Services": {
        "up": "Start all services, or only those named.",
        "down": "Stop all services, or only those named.",
        "restart": "Restart all services, one at a time, or only those named.",
        "logs": "Print logs.",
        "why": "Show recent service events and their causes.",
    },
    "Models": {
        "models": "List installed, known or available models.",
        "pull": "Download a model.",
        "load": "Load a model before it is requested.",
        "unload": "Unload a model until it is requested again.",
        "pin": "Keep a model in memory once it is loaded.",
        "unpin": "Allow a pinned model to be unloaded again.",
        "bench": "Benchmark a running tier or an installed model.",
        "verify": "Re-check model files and re-download damaged ones.",
        "rm": "Delete a model.",
        "prune": "Delete incomplete, damaged and outdated model files.",
        "catalog": "Validate the model catalog.",
        "engine": "Install engines and choose which one to use.",
    },
    "Jobs": {
        "jobs": "List, watch, cancel and retry jobs.",
        "batch": "Run a file of requests in the background.",
        "worker": "Run the worker in the foreground.",
    },
    "Always on": {
        "watch": "Run the watchdog in the foreground and show service states.",
        "upgrade": "Upgrade mlxq without interrupting requests.",
        "install": "Start the worker at login or boot (launchd, systemd).",
        "uninstall": "Remove the autostart entry; services keep running.",
        "schedule": "Run commands on a schedule.",
        "notify": "Send a message when something needs attention.",
    },
    "Fleet": {
        "node": "Join machines to one fleet, and look at its nodes.",
        "fleet": "Plan which machine of the fleet serves what, and change one after another.",
    },
    "Settings": {
        "config": "Read and change settings.",
        "connect": "Configure another program to use mlxq.",
        "keys": "Manage API keys.",
        "usage": "Show request and token counts.",
        "doctor": "Diagnose problems.",
        "completion": "Print a shell completion script, or install it.",
    },
}
"""Every command, by section, with the first line of its help; a test holds that the two are the same."""
ALIASES: Mapping[str, str] = {
    "ps": "status",
    "show": "status",
    "ls": "models",
    "list": "models",
    "run": "chat",
    "start": "up",
    "serve": "up",
    "stop": "down",
    "open": "dashboard",
}
"""Words that people type out of habit, from Docker, Ollama and systemctl, and the command that each runs."""
DELETES = frozenset({"rm", "prune", "uninstall"})
"""Commands that are never suggested for a typing mistake."""
EXIT_CODES = """\
0 done  1 failed  2 usage error  3 not set up or not running  4 does not fit
5 timed out, the job continues  130 Ctrl-C
"""
INTERRUPTED = 130
WIDEST_HELP, NARROWEST_HELP = 80, 50


class Commands(click.Group):
    """The commands, each imported when it is needed."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context, with the width of the help as click has it: to ask for it, click imports shutil, 3 ms."""
        width = max(min(render.columns(), WIDEST_HELP) - 2, NARROWEST_HELP)
        return super().make_context(info_name, args, parent, **{"terminal_width": width, **extra})

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Return all names, in the order of the help."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None for a name that is neither a command nor an alias."""
        if ctx.params.get("node"):
            from mlxq.fleet import node_commands

            return node_commands.find(ALIASES.get(cmd_name, cmd_name))
        if cmd_name in WORDS:
            return WORDS[cmd_name]
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"mlxq.commands.{name}").command
        _accept_output_options(command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself would report a failure when the reader of the output leaves."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _reader_left()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that was typed. Raises UsageError with the command that may have been meant."""
        names = [*self.list_commands(ctx), *ALIASES, *WORDS]
        if args[0] in names or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        import difflib

        near = difflib.get_close_matches(args[0], [name for name in names if name not in DELETES], n=1)
        raise click.UsageError(
            f"There is no command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx=ctx
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's signature)
        """Write the commands, section by section, without importing any."""
        widest = max(len(name) for section in SECTIONS.values() for name in section)
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in section.items()])
        with formatter.section("Exit codes"):
            formatter.write_text(f"\b\n{EXIT_CODES}")


def _be_quiet(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        render.output.quiet = True


def _no_color(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        render.output.no_color = True


def _accept_output_options(command: click.Command) -> None:
    """Let -q and --no-color stand after the command as well; its help does not repeat them."""
    if any(param.name == "quiet" for param in command.params):
        return
    for names, callback in ((("-q", "--quiet"), _be_quiet), (("--no-color",), _no_color)):
        command.params.append(click.Option(names, is_flag=True, hidden=True, expose_value=False, callback=callback))
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_output_options(child)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")
@click.option("--no-color", is_flag=True, help="Print no colors (as NO_COLOR does).")
@click.option("--node", metavar="NAME", help="Have another node of the fleet do it (pull, rm, up, bench, jobs …).")
@click.option("--debug", is_flag=True, envvar="MLXQ_DEBUG", help="Show tracebacks.")
@click.option("--version", is_flag=True, help="Print the versions of mlxq, its engines, MLX and LiteLLM.")
@click.pass_context
def mlxq(ctx: click.Context, *, quiet: bool, no_color: bool, node: str | None, debug: bool, version: bool) -> None:
    """Three models behind one endpoint, every operation a durable job."""
    render.output.quiet, render.output.no_color = quiet, no_color
    ctx.color = render.forced_color()
    if debug:
        os.environ["MLXQ_DEBUG"] = "1"
    if version:
        _version()
        ctx.exit()
    if ctx.invoked_subcommand is None and node:
        raise UsageProblem("--node needs a command.", hint=f"mlxq --node {node} jobs")
    if ctx.invoked_subcommand is None:
        from mlxq.commands.status import overview

        overview()


def _version() -> None:
    from pathlib import Path

    from mlxq import __version__
    from state.paths import get_home

    click.echo(f"mlxq {__version__}")
    packages = dict(_versions(Path(click.__file__).parents[1], ".dist-info"))
    for name in ("vllm-mlx", "mlx", "mlx-lm", "litellm"):
        if version := packages.get(name.replace("-", "_")):
            click.echo(f"{name} {version}")
    for name, version in _versions(get_home().engines):
        click.echo(f"{name} {version} (an environment of its own)")


def _versions(folder: Path, ending: str = "") -> list[tuple[str, str]]:
    """Return names and versions of what is installed in a folder, from the names NAME-VERSION and the ending.

    importlib.metadata would cost 60 ms.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name.endswith(ending))
    except OSError:
        return []
    pairs = [name.removesuffix(ending).rpartition("-") for name in names]
    return [(name, version) for name, _, version in pairs if version[:1].isdecimal()]


@click.command(hidden=True)
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
def _help(words: tuple[str, ...]) -> None:
    """Show the help of mlxq, or of a command."""
    mlxq.main([*words, "--help"], prog_name="mlxq", standalone_mode=False)


WORDS: Mapping[str, click.Command] = {"help": _help, "version": click.command(hidden=True)(_version)}
"""Options that people type as commands."""


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        _check_text(argv)
        return mlxq.main(list(argv), prog_name="mlxq", standalone_mode=False) or 0
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        render.say("Stopped.")
        return INTERRUPTED
    except MlxqError as problem:
        return _report(problem)
    except Exception as problem:  # noqa: BLE001 (one of the two places that may)
        return _report(_explain(problem))


def _check_text(argv: Sequence[str]) -> None:
    """Raise UsageProblem for an argument that is no text; Python marks such bytes as lone surrogates."""
    for number, word in enumerate(argv, start=1):
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UsageProblem(f"Argument {number} is not valid UTF-8.", hint="mlxq --help")


def _report(problem: MlxqError) -> int:
    if os.environ.get("MLXQ_DEBUG"):
        import traceback

        traceback.print_exc()
    render.problem(problem)
    return problem.exit_code


def _reader_left() -> int:
    """Return 0 when the reader of the output left (`mlxq jobs | head -1`); Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain(problem: Exception) -> MlxqError:
    """Return the error that explains an exception; what the machine did not refuse is a bug in mlxq."""
    from state.paths import get_home

    if isinstance(problem, OSError) and problem.filename:
        return MlxqError(f"{problem.filename}: {problem.strerror}.", hint=f"ls -la {get_home().root}")
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return DiskFull("The disk is full.", hint="df -h")
    name = type(problem).__name__
    log = _keep_traceback()
    return Internal(
        f"This is a bug in mlxq: {name}: {problem}.",
        done=f"The traceback is in {log}." if log else None,
        hint="mlxq --debug …   (the same command again, with the traceback)",
    )


def _keep_traceback() -> str | None:
    """Append the traceback to logs/mlxq.log and return its path; None where that cannot be written."""
    from state.paths import get_home

    path = get_home().log("mlxq")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return None
    with os.fdopen(descriptor, "w") as file:
        import traceback

        traceback.print_exc(file=file)
    return str(path)
