"""What sleeps is forgotten, and stays where it is asked for at that moment."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from state import service
from state.db import Database
from tasks.on_demand import idle

NAME = "mine.int4"


@pytest.mark.parametrize("asked", [False, True])
def test_an_engine_that_is_asked_for_as_it_is_forgotten_stays(
    asked: bool, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.ensure(db, NAME, "engine", 9000)
    requests, transaction = [lambda: service.set_desired(db, NAME, "up")] * asked, db.transaction

    def late() -> AbstractContextManager[None]:
        """Wait for the one that asks for the engine, as it has the database."""
        if requests:
            requests.pop()()
        return transaction()

    monkeypatch.setattr(db, "transaction", late)
    idle._forget_sleeping(db)

    assert (service.find(db, NAME) is not None) is asked
