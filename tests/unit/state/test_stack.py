"""The stack: engines and the tiers that point to them, and what becomes of a stack of an older mlxq."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from state import stack
from state.db import Database, open_database
from state.errors import NotFound, NotSetUp
from state.paths import Home
from state.stack import Defaults, Engine, Tier

MAIN = Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 8000, 65_536, 8 * 2**30, 2**30, 4, vision=True)
QUICK = Defaults(max_tokens=1024, temperature=0.2, top_p=0.9, top_k=20, thinking=False, thinking_budget=0)
SHARED = [Tier("standard", MAIN), Tier("fast", MAIN, QUICK), Tier("longctx", MAIN)]
OLD = """
import sys
from state import migrations
from state.paths import Home
from sqlite_utils import Database
home = Home(__import__("pathlib").Path(sys.argv[1])).make()
migrations.create_private(home.database)
db = Database(str(home.database))
migrations.schema.apply(db, stop_before=sys.argv[2])
db.execute(f"PRAGMA user_version={len(migrations.schema.applied(db))}")
db.close()
"""
"""Makes a database as it was before a migration."""


def test_tiers_that_share_an_engine_are_read_as_they_were_written(db: Database) -> None:
    stack.replace(db, SHARED)

    assert stack.tiers(db) == SHARED
    assert stack.engines(db) == [MAIN]
    assert [tier.name for tier in stack.served_by(stack.tiers(db), "standard")] == ["standard", "fast", "longctx"]
    assert [stack.shares(tier, SHARED) for tier in SHARED] == ["", "standard", "standard"]


def test_an_engine_may_bear_the_name_of_no_tier(db: Database) -> None:
    stack.replace(db, SHARED[1:])

    assert [tier.engine.name for tier in stack.tiers(db)] == ["standard", "standard"]
    assert stack.engine(db, "standard") == MAIN
    assert [stack.shares(tier, SHARED[1:]) for tier in SHARED[1:]] == ["", "fast"]
    with pytest.raises(NotFound, match="There is no tier 'standard'; there is: fast, longctx"):
        stack.tier(db, "standard")
    with pytest.raises(NotFound, match="There is no engine 'fast'; there is: standard"):
        stack.engine(db, "fast")


def test_a_stack_that_is_replaced_while_it_is_read_is_read_as_it_was(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyError: its engines were those of before, and its tiers were new."""
    stack.replace(db, SHARED)
    read = stack.engines

    def read_before_a_change(opened: Database) -> list[Engine]:
        monkeypatch.setattr(stack, "engines", read)
        before = read(opened)
        other = open_database(db.home)
        stack.replace(other, [Tier("other", replace(MAIN, name="other"))])
        other.close()
        return before

    monkeypatch.setattr(stack, "engines", read_before_a_change)

    assert stack.tiers(db) == SHARED
    assert [tier.name for tier in stack.tiers(db)] == ["other"]


def test_before_set_up_there_is_neither(db: Database) -> None:
    assert (stack.tiers(db), stack.engines(db)) == ([], [])
    for find in (stack.tier, stack.engine):
        with pytest.raises(NotSetUp):
            find(db, "standard")


def test_two_engines_of_one_name_are_refused_and_nothing_changes(db: Database) -> None:
    stack.replace(db, SHARED)
    other = replace(MAIN, model="another", port=8001)

    with pytest.raises(ValueError, match="the same name"):
        stack.replace(db, [Tier("standard", MAIN), Tier("fast", other)])
    assert stack.tiers(db) == SHARED


def test_what_a_user_wants_of_each_tier_outlives_a_change_of_the_stack(db: Database) -> None:
    stack.replace(db, SHARED)
    stack.set_desired(db, ["fast"], "down")
    stack.replace(db, [*stack.tiers(db), Tier("coder", replace(MAIN, name="coder", port=8001))])

    assert {tier.name: tier.desired for tier in stack.tiers(db)} == {
        "standard": "up", "fast": "down", "longctx": "up", "coder": "up"
    }  # fmt: skip


def test_weights_are_those_of_the_engine_for_all_of_its_tiers(db: Database) -> None:
    stack.replace(db, SHARED)
    stack.set_weights(db, "hub:a/b", "/weights")
    assert {tier.engine.weights for tier in stack.tiers(db)} == {"/weights"}


@pytest.mark.parametrize(
    ("defaults", "context", "tokens"),
    [
        (Defaults(), 65_536, 4096),
        (Defaults(), 2_048, 1024),
        (Defaults(max_tokens=512), 65_536, 512),
        (Defaults(max_tokens=9_000), 65_536, 9_000),
        (Defaults(max_tokens=9_000), 4_096, 4_096),
    ],
)
def test_an_answer_is_as_long_as_its_tier_says_within_the_window(defaults: Defaults, context: int, tokens: int) -> None:
    assert Tier("fast", replace(MAIN, context=context), defaults).max_tokens == tokens


def old_home(root: Path, before: str) -> Home:
    subprocess.run([sys.executable, "-P", "-c", OLD, str(root), before], check=True)
    return Home(root)


def insert(home: Home, table: str, **values: Any) -> None:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    with sqlite3.connect(home.database) as connection:
        connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))


def old_tier(name: str, port: int, **more: Any) -> dict[str, Any]:
    sizes = {"context": 65_536, "memory_bytes": 8 * 2**30, "cache_bytes": 2**30, "concurrency": 4, "max_tokens": 4096}
    about = {"model": "qwen3.5-9b", "quant": "int4", "source": f"hub:a/{name}", "weights": "/weights"}
    return {"name": name, "port": port, "assigned_at": 1.0, "prefill_step": 1024, **about, **sizes, **more}


@pytest.mark.parametrize("before", ["m014_shared_engines", "m008_names", "m004_weights"])
def test_a_stack_of_an_older_mlxq_is_served_on_by_engines_of_the_same_names(tmp_path: Path, before: str) -> None:
    home = old_home(tmp_path / "home", before)
    insert(home, "tiers", position=0, **old_tier("standard", 8000))
    insert(home, "tiers", position=1, **old_tier("fast", 8001, context=4096, max_tokens=2048))
    insert(home, "tiers", position=2, **old_tier("coder", 8002, max_tokens=512))

    db = open_database(home)

    assert [(tier.name, tier.engine.name, tier.engine.port) for tier in stack.tiers(db)] == [
        ("standard", "standard", 8000), ("fast", "fast", 8001), ("coder", "coder", 8002)
    ]  # fmt: skip
    assert [tier.max_tokens for tier in stack.tiers(db)] == [4096, 2048, 512]
    assert [tier.defaults.max_tokens for tier in stack.tiers(db)] == [None, None, 512]
    assert {tier.desired for tier in stack.tiers(db)} == {"up"}
    assert db.value("PRAGMA foreign_key_check") is None
    db.close()


def test_names_that_led_to_another_tiers_engine_become_tiers(tmp_path: Path) -> None:
    """Also one that is a tier since, and one whose tier is gone."""
    home = old_home(tmp_path / "home", "m014_shared_engines")
    insert(home, "tiers", position=0, **old_tier("standard", 8000, max_tokens=512))
    insert(home, "tiers", position=1, **old_tier("mine", 8001))
    shares = {"fast": "standard", "longctx": "standard", "mine": "standard", "lost": "gone"}
    insert(home, "facts", name="stack", value=json.dumps({"shares": shares, "total_bytes": 1}), at=1.0)

    db = open_database(home)

    assert [(tier.name, tier.engine.name) for tier in stack.tiers(db)] == [
        ("standard", "standard"), ("mine", "mine"), ("fast", "standard"), ("longctx", "standard")
    ]  # fmt: skip
    assert {tier.max_tokens for tier in stack.served_by(stack.tiers(db), "standard")} == {512}
    db.close()


def test_a_home_that_was_never_set_up_is_brought_on_too(tmp_path: Path) -> None:
    db = open_database(old_home(tmp_path / "home", "m014_shared_engines"))
    assert (stack.tiers(db), stack.engines(db)) == ([], [])
    db.close()
