"""What nodes say of their machines, and the plan that comes of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from support.machines import KNOWN, named

from catalog import fleet as catalog
from catalog.fleet import FleetMachine
from catalog.machine import budget
from mlxq import cli
from state import fleet
from state.db import Database
from state.errors import NotFound
from state.fleet import Node
from state.keys import Key, KeyKind
from tasks.fleet import identity, machine, machine_report, planning
from tasks.fleet.machine_report import NodeMachine
from tasks.gateway.fleet.api import MACHINE, FleetApi
from tasks.gateway.reply import Reply
from tasks.gateway.request_context import Call

ONE = named("M4 Max", 36)
SAID: dict[str, Any] = {
    "machine": ONE.as_row(),
    "budget_bytes": budget(ONE),
    "stack": {"standard": "qwen3.5-9b int4"},
    "weights": ["hub:mlx-community/Qwen3.5-9B-4bit"],
    "reads_once": ["qwen3-0.6b"],
    "measured": [{"model": "qwen3.5-9b", "quant": "int4", "context": 8192, "decode": 40.5, "prompt": 300.0}],
}


def test_a_machine_is_read_as_it_was_described() -> None:
    read = machine_report.read("studio", SAID)

    assert read.plan.machine == ONE
    assert read.plan.now == {"standard": ("qwen3.5-9b", "int4")}
    assert [read.plan.reuses(KNOWN[name]) for name in ("qwen3-0.6b", "qwen3.5-9b")] == [True, False]
    assert read.plan.measured[0].decode == 40.5
    assert read.weights == {"hub:mlx-community/Qwen3.5-9B-4bit"}
    assert not read.plan.stays
    assert machine_report.read("studio", SAID | {"stack": {"mine": "a b"}}).plan.stays, "tiers of its user's own"


WRONG: list[Any] = [
    None,
    [],
    {},
    SAID | {"machine": []},
    SAID | {"machine": {}},
    SAID | {"machine": {"chip": "M4"}},
    SAID | {"machine": ONE.as_row() | {"backend": "quantum"}},
    SAID | {"machine": ONE.as_row() | {"memory_bytes": -1}},
    SAID | {"machine": ONE.as_row() | {"memory_bytes": "much"}},
    SAID | {"machine": ONE.as_row() | {"bandwidth_gbps": float("inf")}},
    SAID | {"machine": ONE.as_row() | {"usable_bytes": 2**70}},
    SAID | {"budget_bytes": True},
    SAID | {"budget_bytes": None},
    SAID | {"stack": {"standard": "\x1b[2J"}},
    SAID | {"stack": {"standard": "no-quant"}},
    SAID | {"stack": 7},
    SAID | {"measured": [7]},
    SAID | {"measured": [{"model": "a", "quant": "b", "context": "x"}]},
]


@pytest.mark.parametrize("said", WRONG, ids=range(len(WRONG)))
def test_what_could_be_no_machine_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match=r"^no "):
        machine_report.read("studio", said)


def test_what_a_machine_says_is_cut_to_what_may_be_shown() -> None:
    evil = SAID | {
        "machine": ONE.as_row() | {"chip": "M4\x1b[2J\x07", "extra": {}},
        "weights": ["\x1b", 7, "a"] * 999,
        "reads_once": "all",
    }
    read = machine_report.read("studio", evil)

    assert read.plan.machine.chip == "M4 [2J "
    assert read.weights == {"a"}
    assert not read.plan.reuses(KNOWN["qwen3-0.6b"])


@pytest.fixture
def planned_for(rows: Database) -> Database:
    """Return the database of a machine that knows what it is."""
    from state import facts

    facts.put(rows, "machine", ONE.as_row())
    return rows


def test_this_machine_says_what_it_is(planned_for: Database) -> None:
    read = machine_report.read("mini", machine.describe(planned_for))

    assert read.plan.machine == ONE
    assert set(read.plan.now) == {"standard", "fast", "longctx"}


def test_who_cannot_be_planned_for_is_said_and_why(planned_for: Database) -> None:
    db, own = planned_for, identity.own_name(planned_for.home)
    fleet.put(db, Node("box", "openai", "http://10.0.0.9:8000", seen_at=1.0))
    fleet.put(db, Node("desk", "mlxq", "https://10.0.0.3:4000", problem="away: nothing", seen_at=1.0))
    fleet.put(db, Node("old", "mlxq", "https://10.0.0.4:4000", state="draining", seen_at=1.0))
    fleet.put(db, Node("lost", "mlxq", "https://10.0.0.5:4000", seen_at=1.0))
    asked = planning.ask(db)

    assert isinstance(asked[own], NodeMachine)
    assert {name: entry for name, entry in asked.items() if name != own} == {
        "box": "speaks OpenAI's API alone, and does no jobs",
        "desk": "away: nothing",
        "old": "is drained (mlxq node drain old --undo)",
        "lost": f"Cannot read the key of the node lost in {fleet.key_file(db.home, 'lost')}",
    }
    with pytest.raises(NotFound, match="There is no node 'none' in this fleet"):
        planning.ask(db, ["none"])


def test_a_plan_says_what_is_to_be_downloaded_and_this_machine_comes_last(planned_for: Database) -> None:
    db, own = planned_for, identity.own_name(planned_for.home)
    machines = {name: machine_report.read(name, SAID) for name in (own, "a", "b")}
    planned = planning.plan(db, machines, "balanced")

    assert [role.name for role in planned.changes] == ["a", "b", own]
    assert {tier for role in planned.changes for tier in role.choice} == {"standard", "fast", "longctx"}
    role = planned.changes[0]
    assert sum(planned.fetches(role).values()) == sum(
        KNOWN[model].quants[quant].bytes
        for model, _, quant in (words.partition(" ") for words in set(role.choice.values()))
        if KNOWN[model].quants[quant].source not in machines[role.name].weights
    )


def test_machines_alike_are_judged_alike_whatever_their_names() -> None:
    pair = [FleetMachine(name, ONE, budget(ONE), {}) for name in ("z", "a")]
    first, second = catalog.plan(pair, KNOWN), catalog.plan([replace(entry, name="x") for entry in pair[:1]], KNOWN)

    assert [role.name for role in first.roles] == ["z", "a"]
    assert second.roles[0].name == "x"


@pytest.mark.parametrize(("kind", "status"), [("fleet", 200), ("member", 403), ("app", 403)])
def test_the_gateway_tells_the_node_that_invited_what_machine_it_is(
    planned_for: Database, kind: KeyKind, status: int
) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"scheme": "https", "path": MACHINE, "method": "GET", "headers": [], "client": ("127.0.0.1", 1)}
    api = FleetApi(planned_for.home, lambda _: {}, "0.1.0")
    key = Key("fleet.mini", "", 0.0, kind=kind)
    asyncio.run(api.serve(scope, receive, key, Reply(send, Call(MACHINE))))

    assert sent[0]["status"] == status
    if status == 200:
        assert machine_report.read("mini", json.loads(sent[1]["body"])).plan.machine == ONE


def test_the_plan_is_shown_and_given_to_programs(planned_for: Database, capsys: pytest.CaptureFixture[str]) -> None:
    own = identity.own_name(planned_for.home)
    assert cli.run(["fleet", "plan", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [node["name"] for node in made["nodes"]] == [own]
    assert set(made["nodes"][0]["tiers"]) == {"standard", "fast", "longctx"}
    assert cli.run(["fleet", "plan", "--intent", "agent-fleet", "--explain"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "A fleet of one gets what setup recommends." in shown
    assert f"{own}: serves standard" in shown or f"{own}: stays as it is" in shown
    assert cli.run(["fleet", "plan", "--keep", "none"]) == 1
    assert "There is no node 'none' in this fleet" in capsys.readouterr().err
    assert cli.run(["fleet", "plan", "--keep", own]) == 0
    assert "Nothing is to be changed." in "".join(capsys.readouterr())
