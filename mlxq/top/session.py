"""The live view of `mlxq top`: takes a snapshot each second, and does what the keys say at once."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxq import jobs_client, worker_process
from mlxq.commands import restart
from mlxq.terminal import printable, raw
from mlxq.top import draw, keys
from mlxq.top.keyboard import Keyboard
from mlxq.top.keys import TopAction, TopState, TopView
from mlxq.web import engine_status, snapshot
from mlxq.web.snapshot import Snapshot
from state import service, stack, wakeup
from state.db import Database
from state.errors import MlxqError
from state.paths import Home

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

EVERY_S = 1.0
TAIL_BYTES = 64 * 1024


def take(db: Database, key: str) -> Snapshot:
    """Return what there is to show now; `key` opens the engines."""
    return snapshot.take(db, engine_status.ask(service.listing(db), key))


class TopSession:
    """One live view."""

    def __init__(self, db: Database, home: Home, key: str) -> None:
        self._db = db
        self._home = home
        self._key = key
        self._state = TopState()

    def run(self) -> None:
        """Show the view until `q` or Ctrl-C."""
        from rich.console import Console
        from rich.live import Live

        screen = Live(console=Console(file=raw(sys.stdout), highlight=False), screen=True, auto_refresh=False)
        with wakeup.watcher(self._home, "-top") as bell, Keyboard() as keyboard, screen:
            while self._turn(screen, keyboard, bell):
                pass

    def _turn(self, screen: Live, keyboard: Keyboard, bell: wakeup.Listener) -> bool:
        """Take a snapshot, and draw it until the next is due; return whether the view stays open."""
        began = time.monotonic()
        current = take(self._db, self._key)
        names = [card.service.name for card in [*current.cards, *current.others]]
        while True:
            self._state = keys.settled(self._state, names)
            screen.update(self._drawn(current, screen.console), refresh=True)
            left_s = EVERY_S - (time.monotonic() - began)
            pressed = keyboard.wait(bell.socket.fileno(), left_s)
            for key in pressed:
                self._state, action = keys.press(self._state, key, names)
                if action is TopAction.QUIT:
                    return False
                if action is TopAction.RESTART:
                    self._restart()
            if not pressed:
                bell.wait(0)
                time.sleep(max(0.0, EVERY_S / 4 - (time.monotonic() - began)))  # however often something changes
                return True

    def _drawn(self, current: Snapshot, console: Console) -> RenderableType:
        """Return the whole screen: what is shown, cut to the height, and the keys in the last line."""
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.text import Text

        lines = console.render_lines(self._content(current, console), pad=False)[: console.height - 1]
        lines += [[] for _ in range(console.height - 1 - len(lines))]
        segments = [part for line in lines for part in [*line, Segment.line()]]
        footer = Text(keys.footer(self._state), style="bright_black", no_wrap=True, overflow="ellipsis", end="")
        return Group(Segments(segments), footer)

    def _content(self, current: Snapshot, console: Console) -> RenderableType:
        from rich.text import Text

        if self._state.view is TopView.HELP:
            return Text(keys.HELP)
        if self._state.view is TopView.LOG and self._state.selected:
            log = self._home.log(self._state.selected)
            return Text("\n".join([f"{log}\n", *tail(log, console.height - 4)]), no_wrap=True, overflow="ellipsis")
        return draw.draw(current, console.width, self._state.selected)

    def _restart(self) -> None:
        """Enqueue a restart of the selected service, and note what came of it."""
        from tasks import stack_jobs  # it brings the catalog along

        try:
            name = self._state.selected or ""
            served = stack.served_by(stack.tiers(self._db), name)
            services = restart.requested(self._db, [served[0].name if served else name])
            with jobs_client.writing(self._home) as db:
                (number,) = jobs_client.enqueue(db, stack_jobs.restart_in_turn(services))
            worker_process.ensure(self._home)
            note = f"Job {number} restarts {name}"
        except MlxqError as problem:
            note = problem.message
        self._state = replace(self._state, note=note)


def tail(log: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log, safe to show; a sentence where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as problem:
        return [f"There is nothing to read: {problem.strerror}."]
    return [printable(line) for line in lines[-max(1, count) :]]
