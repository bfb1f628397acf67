"""`mlxq completion`."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell completion script.

    \b
    bash: eval "$(mlxq completion bash)"          in ~/.bashrc
    zsh:  eval "$(mlxq completion zsh)"           in ~/.zshrc
    fish: mlxq completion fish > ~/.config/fish/completions/mlxq.fish
    """  # noqa: D301 (\b is click's mark for lines to keep)
    from click.shell_completion import get_completion_class

    from mlxq.cli import mlxq

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(mlxq, {}, "mlxq", "_MLXQ_COMPLETE").source())
