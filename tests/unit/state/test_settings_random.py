"""Settings files at random, one after another: every one can be read, and what was valid last counts."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.examples import share

from state import settings
from state.errors import MlxqError
from state.paths import Home

VALID: dict[str, tuple[Any, ...]] = {
    "log-max-files": (3, 4, "5"),
    "restart-delay": (1, 2),
    "litellm-port": (4000, 5000, "5001"),
    "page-port": (0, 4001, 6000),
    "tier-port-base": (8000, 9000),
    "engine": ("auto", "vllm-mlx"),
    "memory-budget-pct": ("auto", 50),
    "auto-health-check": (True, "off"),
    "allowed-origins": ([], ["http://localhost:3000"]),
    "aliases": ({}, {"gpt-5": "fast"}),
}
WRONG = ("", "~", "[]", "-1", "many", "1e400", ".nan", "2001-99-99", "{a: 1}", "'\\x00'", "!!binary x", "99999999999")
UNREADABLE = (b"", b"a: [\n", b"\xff\xfe\x00", b"- a\n", b"a: &a [1]\nb: *a\n", bytes(512), b"a: 1\n---\nb: 2\n")

names = st.sampled_from(sorted(VALID))
valid_lines = names.flatmap(
    lambda name: st.sampled_from(VALID[name]).map(lambda value: (name, settings.as_yaml({name: value})))
)
wrong_lines = st.tuples(names, st.sampled_from(WRONG)).map(lambda pair: (pair[0], f"{pair[0]}: {pair[1]}\n"))
unknown_lines = st.sampled_from([("", "of-a-newer-mlxq: 1\n"), ("", "? [a]\n: 1\n"), ("", "# a comment\n")])
texts = st.lists(
    st.one_of(valid_lines, valid_lines, wrong_lines, unknown_lines),
    min_size=1,
    max_size=5,
    unique_by=lambda line: line[0],
)
"""Lines of one file. YAML forbids a key twice, and where it stands twice `reset` may bring the first of them back."""
acts = st.one_of(
    st.tuples(st.just("write"), texts),
    st.tuples(st.just("spoil"), st.sampled_from(UNREADABLE)),
    st.tuples(
        st.just("set"), names.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from((*VALID[name], *WRONG))))
    ),
    st.tuples(st.just("reset"), names),
    st.tuples(st.just("reset"), st.none()),
    st.tuples(st.just("restart"), st.none()),
)


def values(home: Home) -> dict[str, Any]:
    return {name: value.value for name, value in settings.load(home).values.items()}


def beside(every: dict[str, Any], name: str) -> dict[str, Any]:
    """Return all settings but one, and but the ports, which are judged together."""
    return {other: value for other, value in every.items() if other not in {name, *settings.PORTS}}


def perform(home: Home, what: str, argument: Any) -> None:
    """Do one act, and compare with what it may change."""
    before = values(home)
    match what:
        case "write":
            home.config.write_text("".join(text for _, text in argument))
            changed = {name for name, _ in argument}
            others = {name for name in VALID if name not in changed} - set(settings.PORTS)
            read = settings.load(home)
            if read.problems and "Cannot read" in read.problems[0].message:
                assert values(home) == before
            else:
                assert {name: read[name] for name in others} == {
                    name: settings.BY_NAME[name].default for name in others
                }
        case "spoil":
            emptied = argument == b"" and before == {name: known.default for name, known in settings.BY_NAME.items()}
            home.config.write_bytes(argument)
            assert values(home) == before
            assert emptied or settings.load(home).problems
        case "set":
            with suppress(MlxqError):
                value = settings.write(home, *argument)
                read = settings.load(home)
                assert read[argument[0]] == value
                assert beside(values(home), argument[0]) == beside(before, argument[0])
        case "reset":
            settings.reset(home, argument)
            read = settings.load(home)
            for name in (argument,) if argument else VALID:
                assert read[name] == settings.BY_NAME[name].default or name in settings.PORTS
            if argument:
                assert beside(values(home), argument) == beside(before, argument)
        case _:
            settings._loaded.clear()
            assert values(home) == before


@examples(
    max_examples=int(os.environ.get("SETTINGS_EXAMPLES", share(150))),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(play=st.lists(acts, min_size=1, max_size=8))
def test_any_files_one_after_another_leave_settings_that_work(
    play: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(tmp_path_factory.mktemp("settings") / "home").make()
    for what, argument in play:
        perform(home, what, argument)
        for name, value in values(home).items():
            if value != settings.BY_NAME[name].default:
                assert settings.BY_NAME[name].parse(value) == value
        assert settings.port_clash(settings.load(home)) is None
        for problem in settings.load(home).problems:
            assert problem.hint.startswith("mlxq config ")
            assert len(problem.message) < 600
