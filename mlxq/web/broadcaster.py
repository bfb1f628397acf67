"""What viewers see: sections of the page, painted and spelt once for all of them when something has changed.

Nothing runs while nobody looks. A viewer that is slow gets the newest state of each section and misses what was
between; nothing piles up for it.
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

GAP_S = 0.5
"""Paint at most this often; a change after a quiet while is painted at once."""
GUARD_S = 10.0
"""Look at the rows this often even when no wake-up came."""
BUSY_S, IDLE_S = 1.0, 5.0
"""How often engines are asked, while any has work and while none has."""
BEAT_S = 20.0
"""A comment this often, so that a viewer who left is noticed."""
BEAT = b": beat\n\n"


class Broadcaster:
    """Paints while somebody looks, and tells each viewer what is new."""

    def __init__(self, home: Home, painter: HtmlRenderer) -> None:
        self._home = home
        self._painter = painter
        self._viewers = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._version = 0
        self._sections: dict[str, tuple[int, str]] = {}
        self._newest = BEAT
        """The last version's changes, as all who have seen the one before are sent them."""
        self._news = asyncio.Event()
        """Set, and replaced, at every change."""
        self._changed = asyncio.Event()
        self._engines: engine_status.Engines = {}
        self._closed = asyncio.Event()

    def render(self) -> Mapping[str, str]:
        """Give every section as it is now. Raises NotSetUp when there is no database yet."""
        with contextlib.closing(read_database(self._home)) as db:
            return self._render(db)

    def _render(self, db: Database) -> Mapping[str, str]:
        return self._painter.sections(snapshot.take(db, self._engines))

    async def watch(self) -> AsyncGenerator[bytes]:
        """Give all sections as events, then those that changed, for as long as a viewer stays; a beat now and then.

        It ends when the rows can no longer be read, and the browser comes back.
        """
        self._viewers += 1
        if not self._tasks:
            self._sections, self._newest = {}, BEAT
            self._tasks = [asyncio.create_task(self._follow_rows()), asyncio.create_task(self._follow_engines())]
            for task in self._tasks:
                task.add_done_callback(lambda _: self._tell())
        try:
            seen = 0
            while not (self._closed.is_set() or any(task.done() for task in self._tasks)):
                new, seen, news = self._since(seen), self._version, self._news
                yield new
                await self._wait_for_news(news)
        finally:
            self._viewers -= 1
            if not self._viewers:
                await self._rest()

    def _since(self, seen: int) -> bytes:
        """Give what changed after that version."""
        if seen == self._version - 1:
            return self._newest
        return _spell({name: text for name, (version, text) in self._sections.items() if version > seen}) or BEAT

    def close(self) -> None:
        """Let every viewer's stream end."""
        self._closed.set()
        self._tell()

    def _tell(self) -> None:
        """Wake every viewer once; a bell that stayed set would have them spin."""
        told, self._news = self._news, asyncio.Event()
        told.set()

    async def _wait_for_news(self, news: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S):
                await news.wait()

    async def _rest(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_rows(self) -> None:
        """Paint whenever a commit was announced."""
        with contextlib.closing(read_database(self._home)) as db, wakeup.watcher(self._home, "-page") as bell:
            loop = asyncio.get_running_loop()
            loop.add_reader(bell.socket, self._rows_changed, bell)
            try:
                while True:
                    self._changed.clear()
                    self._show(self._render(db))
                    await asyncio.sleep(GAP_S)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(GUARD_S):
                            await self._changed.wait()
            finally:
                loop.remove_reader(bell.socket)

    def _rows_changed(self, bell: wakeup.Listener) -> None:
        bell.wait(0.001)
        self._changed.set()

    def _show(self, painted: Mapping[str, str]) -> None:
        """Keep what changed, and tell the viewers."""
        changed = {name: text for name, text in painted.items() if self._sections.get(name, (0, ""))[1] != text}
        if changed:
            self._version += 1
            self._sections |= {name: (self._version, text) for name, text in changed.items()}
            self._newest = _spell(changed)
            self._tell()

    async def _follow_engines(self) -> None:
        """Ask the engines in a thread, so that a hung one delays nobody.

        The thread outlives a task that is cancelled, so that it must not be given the rows, which are closed then.
        """
        key = secrets.read(self._home.secrets).get(secrets.TIER, "")
        with contextlib.closing(read_database(self._home)) as db:
            while True:
                began = time.monotonic()
                engines = await asyncio.to_thread(engine_status.ask, service.listing(db), key)
                if engines != self._engines:
                    self._engines = engines
                    self._changed.set()
                pause = BUSY_S if engine_status.busy(engines) else IDLE_S
                await asyncio.sleep(max(0.1, pause - (time.monotonic() - began)))


def _spell(sections: Mapping[str, str]) -> bytes:
    return "".join(event(name, text) for name, text in sections.items()).encode()
