"""What docs/operate.md shows can be run."""

from __future__ import annotations

import re
from pathlib import Path

from state import ledger
from state.db import Database
from state.job import NewJob

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"


def test_its_queries_answer(db: Database) -> None:
    ledger.enqueue_all(db, [NewJob("pull"), NewJob("start", needs=["pull"])])
    queries = [
        query for block in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL) for query in block.split(";")
    ]

    blocked, durations = (db.rows(query) for query in queries if query.strip())

    assert [tuple(row) for row in blocked] == [(2, "start", 1, "pull", "queued")]
    assert durations == []
