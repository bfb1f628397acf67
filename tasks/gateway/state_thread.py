"""Use of state.db by requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from state.db import Database, open_database
from state.paths import Home

Result = TypeVar("Result")


async def in_thread(home: Home, work: Callable[[Database], Result]) -> Result:
    """Use state.db in a thread: a busy one must hold up no stream. Raises MlxqError, and as `work`."""

    def run() -> Result:
        with closing(open_database(home)) as db:
            return work(db)

    return await asyncio.to_thread(run)
