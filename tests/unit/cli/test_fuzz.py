"""Whatever is typed: no traceback, and one of the documented exit codes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import share

from mlxq import cli
from state.paths import Home

CODES = {0, 1, 2, 3, 4, 5, 130}
UNTYPED = {
    *("worker", "setup", "catalog", "pull", "bench", "doctor", "install", "uninstall"),
    *("dashboard", "top", "watch", "engine"),
}
"""Without a bad value these begin real work or do not end; each is fuzzed with one bad option at least."""
ENDLESS = {"--watch", "--follow", "-f"}
"""Options that show things until a person has seen enough."""
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["-1", "0", "1e9", "nan", "", " ", "--", "-", "--json", "🦙", "../..", "'; DROP TABLE jobs; --", "9" * 40, "\udcff"]
)


def leaves(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Give every command with the words that lead to it."""
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            found = group.get_command(ctx, name)
            assert found
            yield (*path, name), found
            if isinstance(found, click.Group):
                yield from leaves(found, *path, name)


LEAVES = dict(leaves(cli.mlxq))


@st.composite
def command_lines(draw: Any) -> list[str]:
    """Draw a command with some of its options, each with any value."""
    path = draw(st.sampled_from(sorted(LEAVES)))
    argv = list(path)
    options = [each for each in LEAVES[path].params if isinstance(each, click.Option) and not ENDLESS & set(each.opts)]
    for option in draw(st.lists(st.sampled_from(options), max_size=3)) if options else []:
        argv += [option.opts[0]] if option.is_flag else [option.opts[0], draw(WORDS)]
    argv += draw(st.lists(WORDS, max_size=3))
    return [*argv, "--no-such-option"] if path[0] in UNTYPED else argv


@settings(
    max_examples=share(400),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(command_lines())
def test_any_command_line_ends_with_a_documented_code(home: Home, argv: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(""))
        code = cli.run(argv)

    said = out.getvalue() + err.getvalue()
    assert code in CODES
    assert "Traceback" not in said
    assert "bug in mlxq" not in said
    assert code == 0 or err.getvalue().strip()
