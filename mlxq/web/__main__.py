"""The program of the page's process: `python -P -m mlxq.web PORT`, with MLXQ_HOME in its environment."""

from __future__ import annotations

import argparse
import asyncio
import os
from types import FrameType

import uvicorn

from mlxq.web.app import WebApp, build
from mlxq.web.auth import PageAuth
from state import secrets
from state.paths import get_home
from tasks.system import own_log

STOP_S = 2
"""Seconds for running responses after SIGTERM."""
BEHIND = 5
"""Niceness of the page, so that it does not take CPU time from the gateway and the engines (nice(2))."""


class PageServer(uvicorn.Server):
    """Sleeps between requests, and closes the event streams on shutdown."""

    def __init__(self, config: uvicorn.Config, page: WebApp) -> None:
        super().__init__(config)
        self._page = page
        self._end = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for the shutdown. Uvicorn's own loop polls ten times a second, which costs 0.1 CPU s per minute."""
        await self._end.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown on SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._end.set)
        loop.call_soon_threadsafe(self._page.stage.close)
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve on loopback until SIGTERM."""
    parser = argparse.ArgumentParser(prog="mlxq.web")
    parser.add_argument("port", type=int)
    port: int = parser.parse_args().port
    os.nice(BEHIND)
    home = get_home().make()
    own_log.keep_of_service()
    page = WebApp(home, PageAuth(secrets.ensure(home.secrets)[secrets.PAGE]))
    config = uvicorn.Config(
        build(page),
        host="127.0.0.1",
        port=port,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
    PageServer(config, page).run()


if __name__ == "__main__":
    main()
