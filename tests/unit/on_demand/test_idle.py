"""What sleeps is forgotten, and stays where it is asked for at that moment."""

from __future__ import annotations

import pytest
from support.interleaved import before_next_transaction

from state import service
from state.db import Database
from tasks.on_demand import idle

NAME = "mine.int4"


@pytest.mark.parametrize("asked", [False, True])
def test_an_engine_that_is_asked_for_as_it_is_forgotten_stays(
    asked: bool, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.ensure(db, NAME, "engine", 9000)
    if asked:
        before_next_transaction(db, lambda: service.set_desired(db, NAME, "up"), monkeypatch)
    idle._forget_sleeping(db)

    assert (service.find(db, NAME) is not None) is asked
