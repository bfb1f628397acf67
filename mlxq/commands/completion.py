"""`mlxq completion`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mlxq import render

VARIABLE = "_MLXQ_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--install", is_flag=True, help="Write it to the folder that the shell loads completions from.")
def command(shell: str, *, install: bool) -> None:
    """Print a shell completion script, or install it.

    \b
    bash: eval "$(mlxq completion bash)"          in ~/.bashrc
    zsh:  eval "$(mlxq completion zsh)"           in ~/.zshrc
    fish: mlxq completion fish > ~/.config/fish/completions/mlxq.fish
    """  # noqa: D301 (\b is click's mark for lines to keep)
    if install:
        _install(shell)
    else:
        click.echo(_script(shell))


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from mlxq.cli import mlxq

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(mlxq, {}, "mlxq", VARIABLE).source()


def _install(shell: str) -> None:
    """Write the script where the shell looks for it. A file there that is not mlxq's stays as it is: UsageProblem."""
    from state.errors import UsageProblem
    from state.files import replace

    path = target(shell)
    if path.exists() and not is_ours(path):
        raise UsageProblem(f"{path} is not mlxq's; it was left as it is.", hint=f"mlxq completion {shell}")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, _script(shell).encode(), 0o644)
    click.echo(f"Wrote {path}.")
    if shell == "zsh":
        render.say(f"zsh finds it where this line is in ~/.zshrc before compinit: fpath+=({path.parent})")


def target(shell: str) -> Path:
    """Return the file of a user from which a shell loads the completions of mlxq.

    bash-completion 2 (its README, "Where should I install my own local completion files?") and fish (fish-completions,
    "Where to put completions") look there; zsh has no such folder by default.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / "mlxq",
        "zsh": data / "zsh" / "site-functions" / "_mlxq",
        "fish": config / "fish" / "completions" / "mlxq.fish",
    }[shell]


def is_ours(path: Path) -> bool:
    """Return whether a file is a script that mlxq wrote."""
    try:
        return VARIABLE in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
