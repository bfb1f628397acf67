"""The program `mlxq`, also as `python -P -m mlxq`."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO, cast

from mlxq import __version__, shadowed_packages
from mlxq.terminal import Terminal


def main() -> None:
    """Run the command line and leave with its exit code."""
    if shadowed := shadowed_packages():
        sys.exit(
            f"mlxq: {shadowed[0]} stands in the way of a package of mlxq with the same name.\n"
            "Next: go to another folder and run the program `mlxq` there"
        )
    become_chosen_version()
    _mind_streams()
    from mlxq.cli import run

    sys.exit(run(sys.argv[1:]))


def become_chosen_version() -> None:
    """Become the version that an upgrade put in the place of this installation, if any.

    tasks/upgrade/installation.py says where it is. One that an upgrade made never becomes another, and neither does a
    checkout. Without the standard library's pathlib: this is on the way of every command.
    """
    root = os.environ.get("MLXQ_HOME") or os.path.expanduser("~/.mlxq")  # noqa: PTH111
    versions = os.path.join(os.path.abspath(root), "versions")  # noqa: PTH100, PTH118
    try:
        chosen = os.readlink(f"{versions}/from-{__version__}")  # noqa: PTH115
    except OSError:
        return
    python = f"{versions}/{chosen}/venv/bin/python"
    ours = os.path.realpath(sys.prefix).startswith(os.path.realpath(versions) + os.sep)
    checkout = os.path.exists(f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/pyproject.toml")  # noqa: PTH100, PTH110, PTH120
    if "/" in chosen or ours or checkout or not os.access(python, os.X_OK):
        return
    if sys.argv[1:2] == ["worker"] and os.path.exists(f"{root}/upgrade.json"):  # noqa: PTH110
        _guard_upgrade()
    os.execv(python, [python, "-P", "-m", "mlxq", *sys.argv[1:]])  # noqa: S606 (an interpreter of mlxq's own)


def _guard_upgrade() -> None:
    """See that an upgrade which is not settled is guarded, also where its version cannot start."""
    from state.paths import get_home
    from tasks.upgrade import back, record

    if current := record.read(get_home()):
        back.ensure_guard(get_home(), current)


def _mind_streams() -> None:
    """Let no stream stop a command, and no text take over a terminal.

    A closed stream (`>&-`) swallows all, one of another alphabet gets `?` for signs.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            if stream.isatty():
                setattr(sys, name, Terminal(cast("TextIO", stream)))


if __name__ == "__main__":
    main()
