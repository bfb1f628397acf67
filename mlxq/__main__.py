"""The program `mlxq`, also as `python -P -m mlxq`."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO, cast

from mlxq import shadowed_packages
from mlxq.terminal import Terminal


def main() -> None:
    """Run the command line and leave with its exit code."""
    if shadowed := shadowed_packages():
        sys.exit(
            f"mlxq: {shadowed[0]} stands in the way of a package of mlxq with the same name.\n"
            "Next: go to another folder and run the program `mlxq` there"
        )
    _mind_streams()
    from mlxq.cli import run

    sys.exit(run(sys.argv[1:]))


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
