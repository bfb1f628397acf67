"""Who is told to have memory, as the rows of services say it."""

from __future__ import annotations

import pytest

from state import service, settings
from state.db import Database
from state.service import State
from tasks.on_demand import admission


@pytest.mark.parametrize("state", [State.STOPPED, State.STARTING, State.LOADING, State.BACKOFF])
def test_an_engine_that_was_given_its_memory_a_moment_ago_is_not_stopped_for_another(
    rows: Database, state: State
) -> None:
    """Its row is still that of the start before, which was ready long ago, until the next one is recorded."""
    settings.write(rows.home, "tier-idle-stop", {"fast": 300})
    service.update(rows, "fast", state=state, desired="up", ready_at=1.0)

    (fast,) = [resident for resident in admission.residents(rows, rows.home, asks=False) if resident.name == "fast"]

    assert fast.starting
    assert not fast.pinned
