"""Send changed sections of the page to all viewers; each section is rendered once for all of them.

Nothing runs while there are no viewers. A slow viewer gets the newest state of each section and skips those between;
nothing is buffered for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping

from mlxq.web import engine_status, snapshot
from mlxq.web.html import HtmlRenderer, event
from state import secrets, service, wakeup
from state.db import Database, read_database
from state.paths import Home

GAP_S = 0.35
"""Render at most this often; the first change after a pause is rendered immediately."""
GUARD_S = 30.0
"""Read the rows this often even without a wake-up: one may be lost, and charts go on by the minute."""
BUSY_S, IDLE_S = 1.0, 5.0
"""How often engines are polled, while any is busy and while all are idle."""
BEAT_S = 20.0
"""Send a comment this often, so that a closed connection is detected."""
BEAT = b": beat\n\n"


class Broadcaster:
    """Renders the page while it has viewers, and sends each viewer what is new."""

    def __init__(self, home: Home, painter: HtmlRenderer) -> None:
        self._home = home
        self._painter = painter
        self._viewers = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._version = 0
        self._sections: dict[str, tuple[int, str]] = {}
        self._newest = BEAT
        """The changes of the last version, encoded for viewers that have the version before."""
        self._news = asyncio.Event()
        """Set and replaced on every change."""
        self._changed = asyncio.Event()
        self.engines: engine_status.Engines = {}
        self.closed = asyncio.Event()

    def render(self) -> Mapping[str, str]:
        """Return every section as it is now. Raises NotSetUp if there is no database yet."""
        with contextlib.closing(read_database(self._home)) as db:
            return self._render(db)

    def _render(self, db: Database) -> Mapping[str, str]:
        return self._painter.sections(snapshot.take(db, self.engines))

    async def watch(self) -> AsyncGenerator[bytes]:
        """Yield all sections as events, then the changed ones, until the viewer disconnects, with a regular heartbeat.

        The stream ends when the rows can no longer be read; the browser then reconnects.
        """
        self._viewers += 1
        if not self._tasks:
            self._sections, self._newest = {}, BEAT
            self._tasks = [asyncio.create_task(self._follow_rows()), asyncio.create_task(self._follow_engines())]
            for task in self._tasks:
                task.add_done_callback(lambda _: self._notify())
        try:
            version = 0
            while not (self.closed.is_set() or any(task.done() for task in self._tasks)):
                new, version, news = self._since(version), self._version, self._news
                yield new
                await self._wait_for_news(news)
        finally:
            self._viewers -= 1
            if not self._viewers:
                await self._stop()

    def _since(self, version: int) -> bytes:
        """Return the events of all changes after version `version`."""
        if version == self._version - 1:
            return self._newest
        return (
            _encode({name: text for name, (changed_at, text) in self._sections.items() if changed_at > version}) or BEAT
        )

    def close(self) -> None:
        """End every viewer's stream."""
        self.closed.set()
        self._notify()

    def _notify(self) -> None:
        """Wake every viewer once; an event that stayed set would make them spin."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _wait_for_news(self, news: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S):
                await news.wait()

    async def _stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_rows(self) -> None:
        """Render after every commit."""
        with contextlib.closing(read_database(self._home)) as db, wakeup.watcher(self._home, "-page") as listener:
            loop = asyncio.get_running_loop()
            loop.add_reader(listener.socket, self._rows_changed, listener)
            try:
                while True:
                    self._changed.clear()
                    self._show(self._render(db))
                    await asyncio.sleep(GAP_S)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(GUARD_S):
                            await self._changed.wait()
            finally:
                loop.remove_reader(listener.socket)

    def _rows_changed(self, listener: wakeup.Listener) -> None:
        listener.wait(0.001)
        self._changed.set()

    def _show(self, sections: Mapping[str, str]) -> None:
        """Store the changed sections and notify the viewers."""
        before = {name: text for name, (_, text) in self._sections.items()}
        changed = {name: text for name, text in sections.items() if before.get(name) != text}
        if changed:
            self._version += 1
            self._sections |= {name: (self._version, text) for name, text in changed.items()}
            self._newest = _encode(changed)
            self._notify()

    async def _follow_engines(self) -> None:
        """Poll the engines in a thread, so that a hung engine delays no viewer.

        The thread outlives a cancelled task, so it must not use the database, which is closed by then.
        """
        key = secrets.read(self._home.secrets).get(secrets.TIER, "")
        with contextlib.closing(read_database(self._home)) as db:
            while True:
                started = time.monotonic()
                engines = await asyncio.to_thread(engine_status.ask, service.listing(db), key)
                if engines != self.engines:
                    self.engines = engines
                    self._changed.set()
                pause = BUSY_S if engine_status.busy(engines) else IDLE_S
                await asyncio.sleep(max(0.1, pause - (time.monotonic() - started)))


def _encode(sections: Mapping[str, str]) -> bytes:
    return "".join(event(name, text) for name, text in sections.items()).encode()
