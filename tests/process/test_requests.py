"""The newest request wins: whatever was asked from several shells, and wherever a worker died meanwhile."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.shells import SERVICES, Asked, Shells, Shift

EXAMPLES = int(os.environ.get("REQUEST_EXAMPLES", "20"))
Play = list[Asked | Shift]

names = st.sampled_from([(), *((name,) for name in SERVICES)])
requests = st.builds(Asked, st.sampled_from(["up", "up", "down", "down", "restart"]), names, st.booleans())
deaths = st.one_of(st.just(0), st.integers(1, 400))
shifts = st.builds(Shift, deaths, st.lists(st.tuples(st.integers(1, 400), requests), max_size=2).map(tuple))
plays = st.lists(st.one_of(requests, shifts), min_size=2, max_size=7)


def perform(template: Path, folder: Path, play: Play) -> None:
    """Play upon a home whose stack is up, let workers live until nothing is left to do, and compare."""
    with closing(Shells(template, folder / "home")) as shells:
        shells.ask(Asked("up"))
        deaths = 0
        for act in play:
            if isinstance(act, Asked):
                shells.ask(act)
            else:
                deaths += act.dies_at > 0
                shells.work(act if deaths <= 3 else Shift(0, act.meanwhile))  # a job is given up after four
        shells.settle()

        assert shells.faults() == [], shells.account()


@pytest.mark.timeout(580)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a play takes a second: too long to be shrunk
)
@given(play=plays)
def test_what_was_asked_last_holds(play: Play, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> None:
    perform(empty_database, tmp_path_factory.mktemp("shells"), play)


UP, DOWN, RESTART, WORK = Asked("up"), Asked("down"), Asked("restart"), Shift()
PLAYS: dict[str, Play] = {
    "down before anything ran": [DOWN],
    "up and down": [WORK, DOWN, UP, DOWN],
    "down and up": [WORK, DOWN, UP],
    "down while a start waits for the configuration": [WORK, DOWN, WORK, UP, DOWN],
    "up while the stop is half done": [WORK, DOWN, Shift(60), UP],
    "down by name of what waits": [Asked("down", ("fast",))],
    "restart and down": [WORK, RESTART, DOWN],
    "restart, down and up": [WORK, RESTART, DOWN, UP],
    "restart, down and up of one": [WORK, *(Asked(command, ("gateway",)) for command in ("restart", "down", "up"))],
    "restart of the others while one goes down, and up": [WORK, Asked("down", ("standard",), flag=True), RESTART, UP],
    "restart while it starts": [Shift(0, ((260, RESTART),))],
    "a purge attaches to a restart": [WORK, RESTART, Asked("restart", (), flag=True)],
    "up ends a drain": [WORK, Asked("down", ("fast",), flag=True), Asked("up", ("fast",))],
    "a rescued start comes after a newer down": [Shift(150), DOWN],
    "a rescued stop comes after a newer up": [WORK, DOWN, Shift(40), UP, Shift(30)],
}


@pytest.mark.parametrize("name", PLAYS)
def test_what_was_asked_last_holds_when(name: str, tmp_path: Path, empty_database: Path) -> None:
    perform(empty_database, tmp_path, PLAYS[name])
