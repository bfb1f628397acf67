"""The command line: which commands there are, and the one place where an error becomes an exit code.

A command's module is imported when it is run, so that `mlxq --help` loads click and nothing else of weight.
Each command is the function `command` in the module of its name under mlxq.commands: parse, ask, render.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import click

from mlxq import render
from state.errors import DiskFull, Internal, MlxqError, UsageProblem
from state.paths import get_home

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Start": {
        "setup": "Choose models for this machine and bring them up.",
        "status": "Show the machine, the tiers and the gateway.",
        "dashboard": "Open the page that shows everything, live.",
        "top": "Show tiers, requests and jobs, live in the terminal.",
        "chat": "Ask a tier, and print its answer as it comes.",
    },
    "Stack": {
        "up": "Bring the stack up, or one tier of it.",
        "down": "Put the stack down, or one tier of it.",
        "restart": "Start the stack anew, or one tier of it.",
        "logs": "Print the log of a service, or of the worker.",
        "why": "Tell what happened to the services, and why.",
    },
    "Models": {
        "models": "List the models here, in the catalog, or on the Hub.",
        "pull": "Fetch the weights of a model: catalog id, repo or folder.",
        "bench": "Time a tier, or a model on an engine of its own.",
        "verify": "Hash the weights of MODEL, or all, again; what is damaged is fetched anew.",
        "rm": "Delete the weights of MODEL from this machine.",
        "prune": "Delete weights that are of no use: torn, damaged, or of an older revision.",
        "catalog": "Check the models mlxq knows.",
        "engine": "Install engines and choose between them.",
    },
    "Jobs": {
        "jobs": "List, watch, cancel and retry jobs.",
        "worker": "Run the worker here, in the foreground.",
    },
    "Always on": {
        "watch": "Keep the services up from here, and show how they are.",
        "install": "Have the system keep the worker alive, also after a reboot.",
        "uninstall": "Undo install; the services go on.",
    },
    "Settings": {
        "config": "Read and change settings.",
        "connect": "Make another program use the gateway.",
        "keys": "Give apps keys of their own to the gateway, and take them away.",
        "usage": "Show what was asked of the gateway: requests, tokens, times.",
        "doctor": "Look for what keeps mlxq from working; takes at most five seconds.",
        "completion": "Print the script that completes commands in your shell.",
    },
}
"""Every command, by section, with the first line of its help; a test holds that the two are the same."""
EXIT_CODES = """\
0 done  1 failed  2 wrong use  3 not set up or not running  4 does not fit
5 timed out, the job goes on  130 Ctrl-C
"""
INTERRUPTED = 130


class Commands(click.Group):
    """The commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Give all names, in the order of the help."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"mlxq.commands.{cmd_name}").command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself would call it a failure when the reader of its output leaves."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _reader_left()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed, or say what may have been meant."""
        names = self.list_commands(ctx)
        if args[0] in names or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        import difflib

        near = difflib.get_close_matches(args[0], names, n=1)
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


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="MLXQ_DEBUG", help="Show where in mlxq a fault arose.")
@click.option("--version", is_flag=True, help="Print the version.")
@click.pass_context
def mlxq(ctx: click.Context, *, debug: bool, version: bool) -> None:
    """Three models behind one endpoint, every operation a durable job."""
    if debug:
        os.environ["MLXQ_DEBUG"] = "1"
    if version:
        from mlxq import __version__

        click.echo(f"mlxq {__version__}")
        ctx.exit()
    if ctx.invoked_subcommand is None:
        from mlxq.commands.status import overview

        overview()


def run(argv: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
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
        return _tell(problem)
    except Exception as problem:  # noqa: BLE001 (one of the two places that may)
        return _tell(_explain(problem))


def _check_text(argv: Sequence[str]) -> None:
    """Refuse arguments that hold bytes which are no text; Python marks those as lone surrogates."""
    for number, word in enumerate(argv, start=1):
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UsageProblem(f"Argument {number} is not valid UTF-8.", hint="mlxq --help")


def _tell(problem: MlxqError) -> int:
    if os.environ.get("MLXQ_DEBUG"):
        traceback.print_exc()
    render.problem(problem)
    return problem.exit_code


def _reader_left() -> int:
    """Whoever read our output has seen enough (`mlxq jobs | head -1`); Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain(problem: Exception) -> MlxqError:
    """Turn what the machine refused into a sentence; anything else is a fault in mlxq."""
    if isinstance(problem, OSError) and problem.filename:
        return MlxqError(f"{problem.filename}: {problem.strerror}.", hint=f"ls -la {get_home().root}")
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return DiskFull("There is no room for what was to be written.", hint="df -h")
    name = type(problem).__name__
    kept = _keep_traceback()
    return Internal(
        f"mlxq met a fault of its own: {name}: {problem}.",
        done=f"The details are in {kept}." if kept else None,
        hint="mlxq --debug …   (the same command again, with details)",
    )


def _keep_traceback() -> str | None:
    """Append the traceback to logs/mlxq.log; None where that cannot be written."""
    path = get_home().log("mlxq")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return None
    with os.fdopen(descriptor, "w") as file:
        traceback.print_exc(file=file)
    return str(path)
