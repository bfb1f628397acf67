"""What the keys of `mlxq top` do. Pure: a state and a key in, a state and an action out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mlxq.top.keyboard import DOWN, ESCAPE, UP

COLUMNS = (
    "RUN and WAIT count requests of clients; mlxq's own tests are left out.",
    "TOK/S is the speed of all running requests together, else of the latest. TTFT is the time to first token.",
    "A request shows the tokens of its prompt, those of them that were not read again, and of its answer so far.",
)
HELP = f"""\
↑ ↓, k j   select a service
r          restart it
l          show its log
?          show this help
q, Ctrl-C  close the view; services and jobs continue

{" ".join(COLUMNS)}"""


class TopView(StrEnum):
    """What is on the screen."""

    MAIN = "main"
    HELP = "help"
    LOG = "log"
    CONFIRM = "confirm"


class TopAction(StrEnum):
    """What is to be done beside drawing."""

    QUIT = "quit"
    RESTART = "restart"


@dataclass(frozen=True)
class TopState:
    """What the keys have chosen."""

    selected: str | None = None
    """A service; None for the first."""
    view: TopView = TopView.MAIN
    note: str = ""
    """A sentence on the last action."""


FOOTERS = {
    TopView.MAIN: "↑↓ select · r restart · l log · ? help · q quit",
    TopView.HELP: "any key: back",
    TopView.LOG: "↑↓ another service · l back · q quit",
}


def footer(state: TopState) -> str:
    """Return the last line of the screen."""
    if state.view is TopView.CONFIRM:
        return f"Restart {state.selected}? y yes · any other key: no"
    return f"{state.note} · {FOOTERS[state.view]}" if state.note else FOOTERS[state.view]


def settled(state: TopState, services: Sequence[str]) -> TopState:
    """Return the state with a service selected that is there."""
    if state.selected in services or not services:
        return state
    return replace(state, selected=services[0])


def press(state: TopState, key: str, services: Sequence[str]) -> tuple[TopState, TopAction | None]:
    """Return the state after a key, and what is to be done."""
    state = replace(settled(state, services), note="")
    if state.view is TopView.CONFIRM:
        return replace(state, view=TopView.MAIN), TopAction.RESTART if key in {"y", "Y"} else None
    if state.view is TopView.HELP:
        return replace(state, view=TopView.MAIN), None
    if key == "q":
        return state, TopAction.QUIT
    if key in {UP, "k", DOWN, "j"} and state.selected:
        step = -1 if key in {UP, "k"} else 1
        index = services.index(state.selected) + step
        return replace(state, selected=services[max(0, min(index, len(services) - 1))]), None
    return replace(state, view=_view(state, key)), None


def _view(state: TopState, key: str) -> TopView:
    """Return what is shown after a key."""
    if key == "l" and state.selected:
        return TopView.MAIN if state.view is TopView.LOG else TopView.LOG
    if key == ESCAPE:
        return TopView.MAIN
    if key == "?":
        return TopView.HELP
    return TopView.CONFIRM if key == "r" and state.selected else state.view
