"""The simulated fleet keeps the rules that it is there to judge, and is the same for the same seed."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

from tasks.front import configuration, node_transport
from tasks.front import plan as front

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("fleet_sim")


def figures(run: Any) -> dict[str, Any]:
    return dataclasses.asdict(run) | {"took_s": 0}


def test_the_same_seed_gives_the_same_figures(sim: Any):
    first, again, other = (sim.simulate(5, 100, seed=seed) for seed in (7, 7, 8))

    assert figures(first) == figures(again)
    assert figures(first) != figures(other)


def test_every_conversation_ends_and_stays_where_its_prompt_is(sim: Any):
    fleet = sim.Fleet(5, 200, sim.RULES, seed=3)
    counted = fleet.run()

    assert (fleet.left, fleet.ended) == (0, 200)
    assert len(counted.first_token_s) == counted.calls
    assert counted.stayed == counted.next_calls > 0
    assert abs(fleet.flow) < 1e-6
    assert not any(node.running or node.waiting for node in fleet.nodes)


def test_nodes_that_fail_lose_what_is_in_flight_and_nothing_else(sim: Any):
    """Each call is answered, or was broken off after its first token by a node that died."""
    fleet = sim.Fleet(5, 200, sim.RULES, seed=3, failures=6_000)
    counted = fleet.run()

    assert counted.outages > 20
    assert counted.lost > 0 < counted.repeated
    assert counted.hung > 0 < counted.refused
    assert len(counted.first_token_s) + counted.lost == counted.calls
    assert fleet.ended == 200


def test_without_affinity_prompts_are_read_again(sim: Any):
    kept, spread = (sim.simulate(20, 400, sim.Rules(affinity=affinity)) for affinity in (True, False))

    assert kept.stayed == 1.0
    assert spread.stayed < 0.5
    assert kept.cached > spread.cached + 0.1
    assert kept.first_p95 < spread.first_p95


def test_a_front_is_full_by_its_streams_first(sim: Any):
    full = sim.front(sim.simulate(30, 600))

    assert full["front cores"] > 1 > full["front cores, without streams"]


def test_its_rules_are_those_of_the_front(sim: Any):
    proxy = front.files([], {}, schemas=configuration.schemas(), names={}, ring="", master="").proxy["router_settings"]

    assert proxy["routing_strategy"] == "simple-shuffle", "of the one that tasks/front/node_choice.py leaves"
    assert sim.RULES.affinity is ("session_affinity" in proxy["optional_pre_call_checks"])
    assert (sim.RULES.place, sim.RULES.spill) == ("any", None), "tests/unit/front/test_node_choice.py"
    assert sim.RULES.cooldown_s == proxy["cooldown_time"] == front.COOLDOWN_S
    silent_s = node_transport.PROBES * node_transport.PROBE_S + node_transport.PROBE_LIMIT_S
    assert sim.RULES.connect_s >= max(node_transport.CONNECT_S, silent_s), "it is no better than simulated"
