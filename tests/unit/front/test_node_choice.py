"""Which node a request goes to: counted by the requests there are, and by nothing that one of them has to take back."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

from tasks.front.node_choice import UnderWay


def deployment(name: str, weight: float = 1.0, order: int | None = None) -> dict[str, Any]:
    order_of_it = {} if order is None else {"order": order}
    return {"model_info": {"id": name}, "litellm_params": {"weight": weight} | order_of_it}


A, B, C = (deployment(f"standard@{name}") for name in "abc")
FAST = deployment("fast@a")


def names(chosen: list[dict[str, Any]]) -> list[str]:
    return [entry["model_info"]["id"] for entry in chosen]


def chosen(under_way: UnderWay, *deployments: dict[str, Any]) -> str:
    """Return what is chosen for another request."""
    with under_way.request():
        return names(under_way.choose(deployments))[0]


def test_requests_that_come_at_once_are_shared_before_any_is_sent() -> None:
    under_way = UnderWay()
    with ExitStack() as requests:
        shares = Counter[str]()
        for _ in range(9):
            requests.enter_context(under_way.request())
            shares.update(names(under_way.choose([A, B, C])))
    assert set(shares.values()) == {3}


def test_a_node_is_as_busy_as_all_that_it_serves() -> None:
    under_way = UnderWay()
    with under_way.request():
        under_way.choose([FAST])
        assert {chosen(under_way, A, B) for _ in range(20)} == {"standard@b"}


def test_a_request_that_ended_in_any_way_keeps_its_node_busy_no_more() -> None:
    """Answered, broken off by an error, or by a client that left."""

    async def ask(under_way: UnderWay, *, fails: bool) -> None:
        with under_way.request():
            under_way.choose([A])
            under_way.sent("standard@a")
            await asyncio.sleep(0)
            if fails:
                raise ConnectionResetError

    async def work() -> set[str]:
        under_way = UnderWay()
        await ask(under_way, fails=False)
        for _ in range(9):
            with suppress(ConnectionResetError):
                await ask(under_way, fails=True)
            leaving = asyncio.create_task(ask(under_way, fails=False))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        return {chosen(under_way, A, B) for _ in range(64)}

    assert asyncio.run(work()) == {"standard@a", "standard@b"}


def test_of_equals_a_node_of_twice_the_weight_is_asked_twice_as_often() -> None:
    under_way, often, seldom = UnderWay(), deployment("standard@b", 60.0), deployment("standard@a", 30.0)
    shares = Counter(chosen(under_way, seldom, often) for _ in range(3000))
    assert 1.6 < shares["standard@b"] / shares["standard@a"] < 2.5


def test_each_order_has_its_own_choice_as_litellm_asks_the_second_after_the_first() -> None:
    under_way = UnderWay()
    first, second = [deployment(f"fast@{name}", order=1) for name in "ab"], deployment("fast@c", order=2)
    with under_way.request():
        under_way.sent("fast@a")
        with under_way.request():
            assert names(under_way.choose([second, *first])) == ["fast@b", "fast@c"]
            assert chosen(under_way, A, B, C) == "standard@c", "b is where the first of them goes"


def test_what_a_node_refused_is_asked_of_the_others_first() -> None:
    under_way = UnderWay()
    with under_way.request():
        under_way.sent("standard@a")
        assert set().union(*(names(under_way.choose([A, B])) for _ in range(20))) == {"standard@b"}
        under_way.sent("standard@b")
        assert set().union(*(names(under_way.choose([A, B])) for _ in range(64))) == {"standard@a", "standard@b"}
        assert names(under_way.choose([A])) == ["standard@a"], "its conversation's"
        assert under_way.choose([]) == []
