"""Use of state.db by the gateway, which an upgrade migrates before it replaces the process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import TypeVar

from state.db import Database, open_database, read_database
from state.errors import OtherSchema
from state.paths import Home

Result = TypeVar("Result")


@contextmanager
def opened(home: Home, *, reads: bool = False) -> Generator[Database]:
    """Yield state.db, also with the schema of another version, as far as this one knows it: most migrations only add.

    `reads`: for reading alone. Raises OtherSchema where that does not do, and MlxqError.
    """
    with closing((read_database if reads else open_database)(home, as_it_is=True)) as db:
        try:
            yield db
        except (sqlite3.Error, IndexError) as problem:  # IndexError: a row lacks a column
            if not db.is_other_schema():
                raise
            raise OtherSchema(f"{home.database.name} is of another version of mlxq, which takes over.") from problem


async def in_thread(home: Home, work: Callable[[Database], Result]) -> Result:
    """Use state.db in a thread: a busy one must hold up no stream. Raises OtherSchema, MlxqError, and as `work`."""

    def run() -> Result:
        with opened(home) as db:
            return work(db)

    return await asyncio.to_thread(run)
