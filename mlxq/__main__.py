"""The program `mlxq`, also as `python -P -m mlxq`."""

from __future__ import annotations

import sys

from mlxq import strangers


def main() -> None:
    """Run the command line and leave with its exit code."""
    if found := strangers():
        sys.exit(
            f"mlxq: {found[0]} stands in the way of a package of mlxq with the same name.\n"
            "Next: go to another folder and run the program `mlxq` there"
        )
    from mlxq.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
