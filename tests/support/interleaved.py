"""Another writer that gets the database first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from state.db import Database


def before_next_transaction(db: Database, write: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `write` done once, when the next transaction is about to begin, as if that had waited for the lock."""
    writes, transaction = [write], db.transaction

    def late() -> AbstractContextManager[None]:
        if writes:
            writes.pop()()
        return transaction()

    monkeypatch.setattr(db, "transaction", late)
