"""Three nodes, two fronts and a Redis in network namespaces: what apps notice of a death, a cut cable and a newcomer.

The figures are those of benchmarks/fleet.py, on a machine that does nothing else; what is lost, tried twice, or asked
of the wrong node is counted here. One story: each test leaves the fleet whole.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import networks
from support.fleet_network import FleetNetwork, fleet_network
from support.front_load import Answer, Load, ask, converse, lost, median_s, ordered
from support.mlxq_home import until

from tasks.front import plan as front_plan
from tasks.system import prompt_cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), networks.needed]
OK = 200
CLIENTS = 4


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path, builtin_model: Path) -> Iterator[FleetNetwork]:
    """Return the fleet of the nodes a, b and c, of which a and b are fronts too."""
    folder = tmp_path_factory.mktemp("fleet")
    with fleet_network(folder, proxy=shared_folder, slots=4, weights=builtin_model) as made:
        yield made


def test_idle_nodes_share_what_comes_and_a_conversation_stays_on_its_own(fleet: FleetNetwork) -> None:
    entrances = [fleet.entrance("a"), fleet.entrance("b")]
    with Load(entrances, fleet.key, 2, {"wait_s": 0.05}), ThreadPoolExecutor(4) as pool:
        nodes = list(pool.map(lambda _: converse(entrances, fleet.key, 3), range(12)))
    kept = sum(node == first for first, *rest in nodes for node in rest)
    assert kept >= 0.95 * 12 * 2, nodes
    assert len({first for first, *_ in nodes}) == 3, "every node was asked"


def test_what_an_apps_key_says_of_storing_holds_at_the_node_that_answers(fleet: FleetNetwork) -> None:
    secret = fleet.machines["a"].run("keys", "create", "private", "--background", "--no-store").split()[0]
    kept_out = prompt_cache.folder(fleet.machines["c"].mlxq.home, "standard") / prompt_cache.NO_STORE
    for key, keeps_out in ((fleet.key, False), (secret, True)):
        with fleet.entrance("a").client(key) as client:
            until(lambda client=client: ask(client, ordered()).node == "c", 60)
        assert kept_out.exists() is keeps_out


def test_a_node_that_dies_costs_nobody_an_answer_and_the_other_front_learns_of_it(fleet: FleetNetwork) -> None:
    """No request goes to the other front meanwhile, so it can learn of the death only from the first."""
    with Load([fleet.entrance("a")], fleet.key, CLIENTS) as load, fleet.entrance("b").client(fleet.key) as other:
        load.await_more(10)
        before = len(load.answers)
        fleet.kill("c")
        load.await_more(60)
        learned = _asked_within_cooldown(other, load)
    fleet.revive("c")
    after = load.answers[before:]
    assert not [answer for answer in after if answer.status != OK], "also those in flight, unanswered"
    assert len(_looks(after)) <= _most_looks(after)
    assert [(answer.status, answer.retries) for answer in learned] == [(OK, 0)] * 9


def _asked_within_cooldown(other: httpx.Client, load: Load) -> list[Answer]:
    """Ask one front nine times, in the time for which the other one has just seen that a node does not answer."""
    while True:
        seen = len(_looks(load.answers))
        until(lambda seen=seen: len(_looks(load.answers)) > seen, 60)
        learned = [ask(other, ordered()) for _ in range(9)]
        if learned[-1].ended < _looks(load.answers)[seen].began + front_plan.COOLDOWN_S:
            return learned


def _looks(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers to requests that were sent to a node which does not answer, and then to another one."""
    return [answer for answer in answers if answer.retries > 0]


def _most_looks(answers: Sequence[Answer]) -> int:
    """Return how many requests may look for a dead node: one of each client, and again after each cooldown."""
    took_s = max(answer.ended for answer in answers) - min(answer.began for answer in answers)
    return CLIENTS * (1 + math.ceil(took_s / front_plan.COOLDOWN_S))


def test_a_cut_cable_is_waited_for_once(fleet: FleetNetwork) -> None:
    with Load([fleet.entrance("a")], fleet.key, CLIENTS) as load:
        load.await_more(10)
        fleet.network.cut("c")
        load.await_more(60)
    fleet.network.plug("c")
    fleet.await_serving("c")
    assert not lost(load.answers, 0)
    print(len(_looks(load.answers)), "of", len(load.answers), "waited")
    assert len(_looks(load.answers)) <= _most_looks(load.answers)


def test_who_leaves_and_a_front_that_dies_leave_no_node_busy(fleet: FleetNetwork) -> None:
    """A counter in Redis that is never decremented would stay for an hour, and both fronts would avoid c."""
    first, second = fleet.entrance("a"), fleet.entrance("b")
    for streams in (False, True):
        waits = _conversation_of_c(fleet) | {"stream": streams}
        with ThreadPoolExecutor(12) as pool:
            leaving = [
                pool.submit(ask, entrance.client(fleet.key, limit_s=4), waits) for entrance in [first, second] * 6
            ]
            until(lambda: _running(fleet) > 0, 60)
        assert {answer.result().status for answer in leaving} == {0}
        until(lambda: _running(fleet) == 0, 60)
    with ThreadPoolExecutor(6) as pool:
        broken = [pool.submit(ask, second.client(fleet.key, limit_s=LIMIT_S), waits) for _ in range(6)]
        until(lambda: _running(fleet) > 0, 60)
        os.kill(fleet.machines["b"].mlxq.identity("front").pid, signal.SIGKILL)
    assert {answer.result().status for answer in broken} == {0}
    until(lambda: _running(fleet) == 0, 60)
    fleet.await_serving("c")


LIMIT_S = 150
"""Seconds until the answers to requests whose clients disconnect would be complete."""


def _conversation_of_c(fleet: FleetNetwork) -> dict[str, Any]:
    """Return a request of a conversation that the node c has, which it answers after LIMIT_S."""
    bodies = [ordered()]
    with fleet.entrance("a").client(fleet.key) as client:
        until(lambda: ask(client, bodies[-1]).node == "c" or bodies.append(ordered()), 60)
    order = {"role": "user", "content": f"script {json.dumps({'wait_s': LIMIT_S})}"}
    return bodies[-1] | {"messages": [*bodies[-1]["messages"], order]}


def _running(fleet: FleetNetwork) -> int:
    """Return how many requests the node c answers now, as the front's machine sees it."""
    return fleet.machines["a"].nodes()["c"]["running"]


def test_without_redis_everything_goes_on(fleet: FleetNetwork) -> None:
    with Load([fleet.entrance("a"), fleet.entrance("b")], fleet.key, 4) as load:
        load.await_more(12)
        calm = median_s(load.answers)
        for change in (fleet.redis.kill, fleet.redis.start, fleet.cut_redis, fleet.plug_redis):
            change()
            load.await_more(24)
    assert not lost(load.answers, 0)
    slow = [answer for answer in load.answers if answer.took_s > 5 * calm]
    print(f"{len(slow)} of {len(load.answers)} took more than {5 * calm:.1f} s")
    assert len(slow) <= 4 * 4, "each client waits once a change at most, not with each request"


def test_a_newcomer_serves_within_seconds_and_nothing_is_refused_or_restarted(fleet: FleetNetwork) -> None:
    fleet.leave("c")
    front = fleet.machines["a"].mlxq.identity("front")
    with fleet.local_load("c") as local, Load([fleet.entrance("a")], fleet.key, 2) as load:
        load.await_more(4)
        fleet.join("c", "a")
        until(lambda: any(answer.node == "c" for answer in load.answers[-20:]), 60)
    assert not lost(load.answers, 0)
    assert set(local.statuses()) == {OK}
    assert fleet.machines["a"].mlxq.identity("front") == front
    fleet.join("c", "b")
    fleet.await_serving("c")


def test_who_has_no_key_reaches_nothing_and_an_impostor_is_told_nothing(fleet: FleetNetwork) -> None:
    ports = {name: sorted(fleet.network.listeners(name)) for name in fleet.machines}
    assert {name: len(opened) for name, opened in ports.items()} == {"a": 2, "b": 2, "c": 1}, "gateways and fronts"
    reached, _ = fleet.attack(ports, thorough=False)
    assert reached == []
    told, connections = fleet.impersonate("c")
    assert told == []
    assert connections > 0
    fleet.await_serving("c")


def test_no_node_and_no_front_asks_anything_of_the_world(fleet: FleetNetwork) -> None:
    """LiteLLM fetches prices and tells of itself unless it is told not to; here that would be seen on the cable."""
    assert fleet.strangers.sent == set()
