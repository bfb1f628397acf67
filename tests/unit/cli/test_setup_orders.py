"""The newest change of the stack wins, in whatever order the jobs run, and wherever a worker died meanwhile."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.examples import share

from catalog.machine import Machine
from mlxq.setup import edit
from mlxq.setup.edit import StackChange
from state import facts, ledger, stack
from state.db import Database, open_database
from state.errors import MlxqError
from state.job import Fenced
from state.paths import Home
from state.stack import Engine
from tasks import assign, executor, kinds, runtime

GB = 10**9
STANDARD = Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 8000, 32768, 8 * GB, 1, 1)
FAST = replace(STANDARD, name="fast", model="qwen3.5-4b", source="hub:a/c", port=8001, memory_bytes=GB)
MACHINE = Machine("test", "cpu", "Linux", 128 * GB, 96 * GB, 100.0, "measured", 1.0)
MODELS = ("smollm2-135m", "qwen3.5-2b")
NAMES = ("fast", "tiny", "other")
Death = Literal["", "before", "after"]


@dataclass(frozen=True)
class Turn:
    """One waiting job comes to its turn: the one at `index`, whatever the others wait for."""

    index: int = 0
    death: Death = ""
    """When the worker dies: before the job has done anything, or after all but its own end."""
    meanwhile: StackChange | None = None
    """What is asked for between its claim and its work."""


Act = StackChange | Turn
PENDING_ALONE = "SELECT id FROM jobs WHERE kind = 'assign' AND finished_at IS NULL AND args LIKE '%\"alone\": true%'"
additions = st.builds(
    lambda model, tier: StackChange(add=((model, tier),)), st.sampled_from(MODELS), st.sampled_from(NAMES)
)
removals = st.builds(lambda tier: StackChange(remove=(tier,)), st.sampled_from((*NAMES, "standard")))
alone = st.builds(lambda model: StackChange(alone=model), st.sampled_from(MODELS))
changes = st.one_of(additions, additions, removals, removals, alone)
turns = st.builds(Turn, st.integers(0, 3), st.sampled_from(("", "", "before", "after")), st.one_of(st.none(), changes))
plays = st.lists(st.one_of(changes, turns), min_size=2, max_size=8)


class Stage:
    """A home with two tiers, and what its stack should be."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.db: Database = open_database(home)
        self.expected = {"standard": STANDARD.model, "fast": FAST.model}
        facts.put(self.db, "machine", MACHINE.as_row())
        stack.replace(self.db, [STANDARD, FAST])

    def ask(self, change: StackChange) -> None:
        """Ask for a change as the command does; what it refuses changes nothing.

        A single model that is still to come, and is removed again, leaves the stack that there was: not asked for here.
        """
        if "standard" in change.remove and self.db.rows(PENDING_ALONE):
            return
        with suppress(MlxqError):
            edit.begin(self.db, edit.plan(self.db, self.home, change), change)
            if change.alone:
                self.expected = {"standard": change.alone}
            for name in change.remove:
                self.expected.pop(name, None)
            self.expected |= {tier: model for model, tier in change.add}

    def turn(self, turn: Turn) -> bool:
        """Let one job come to its turn; return whether there was any."""
        waiting = [
            row["id"] for row in self.db.rows("SELECT id FROM jobs WHERE kind = 'assign' AND finished_at IS NULL")
        ]
        if not waiting:
            return False
        job = waiting[turn.index % len(waiting)]
        self.db.run("UPDATE jobs SET priority = id = ? WHERE kind = 'assign'", (job,))
        self.db.run("UPDATE jobs SET state = 'queued', run_at = 0 WHERE id = ?", (job,))
        claim = ledger.claim(self.db, "ops", {"assign"}, "the worker")
        assert claim
        assert claim.id == job
        if turn.meanwhile:
            self.ask(turn.meanwhile)

        # One death more than MAX_RESCUES fails the job, as it should: not what is tried here.
        death = turn.death if claim.attempt <= ledger.MAX_RESCUES else ""

        def task(context: executor.Context, **arguments: Any) -> Any:
            result = None if death == "before" else assign.assign(context, **arguments)
            if death:
                raise Fenced
            return result

        executor.perform(kinds.KINDS["assign"], task, claim)
        ledger.rescue(self.db, [claim])
        return True


def perform(home: Home, play: list[Act], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do all of a play, then let what waits run, the newest first, and compare."""
    stage = Stage(home)
    ours = runtime.Runtime()
    ours.home, ours.owner, ours._local.database = home, "the worker", stage.db
    monkeypatch.setattr(executor, "runtime", ours)
    with closing(stage.db):
        for act in play:
            if isinstance(act, Turn):
                stage.turn(act)
            else:
                stage.ask(act)
        while stage.turn(Turn(-1)):
            pass
        assert {tier.name: tier.model for tier in stack.tiers(stage.db)} == stage.expected
        assert stage.db.rows("SELECT id, error FROM jobs WHERE kind = 'assign' AND state = 'failed'") == []


ADD = StackChange(add=(("smollm2-135m", "tiny"),))
OTHER = StackChange(add=(("qwen3.5-2b", "tiny"),))
REMOVE = StackChange(remove=("tiny",))


@settings(
    max_examples=int(os.environ.get("SETUP_EXAMPLES", share(60))),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@example(play=[ADD, REMOVE, ADD])
@example(play=[ADD, Turn(meanwhile=OTHER)])
@example(play=[ADD, Turn(death="after"), REMOVE])
@example(play=[StackChange(alone="smollm2-135m"), ADD, Turn(1), StackChange(alone="qwen3.5-2b"), Turn(-1)])
@example(play=[StackChange(alone="smollm2-135m"), *[Turn(death="before")] * 5])
@given(play=plays)
def test_what_was_asked_last_is_the_stack(
    play: list[Act], tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> None:
    home = Home(tmp_path_factory.mktemp("orders") / "home").make()
    shutil.copyfile(empty_database, home.database)
    home.database.chmod(0o600)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLXQ_HOME", str(home.root))
        perform(home, play, monkeypatch)
