"""What a request for a tier means for its engine, which may serve others, and for the gateway."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from state import service, stack
from state.db import Database
from state.stack import Engine, Tier
from tasks import tier_requests
from tasks.tier_requests import Effects

MAIN = Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 8000, 65_536, 2**33, 2**30, 4)
OWN = dataclasses.replace(MAIN, name="coder", model="qwen3.5-4b", port=8001)
TIERS = [Tier("standard", MAIN), Tier("fast", MAIN), Tier("longctx", MAIN), Tier("coder", OWN)]


def down(*names: str) -> list[Tier]:
    return [dataclasses.replace(tier, desired="down") if tier.name in names else tier for tier in TIERS]


@pytest.mark.parametrize(
    ("tiers", "names", "services", "reroutes"),
    [
        (TIERS, ["fast"], [], True),
        (TIERS, ["fast", "longctx"], [], True),
        (TIERS, ["standard"], [], True),
        (TIERS, ["fast", "longctx", "standard"], ["standard"], False),
        (TIERS, ["coder"], ["coder"], False),
        (TIERS, ["coder", "fast"], ["coder"], True),
        (TIERS, ["gateway"], ["gateway"], False),
        (down("fast"), ["fast"], [], False),
        (down("fast", "longctx"), ["standard"], ["standard"], False),
        (down("standard", "fast", "longctx"), ["fast"], ["standard"], False),
    ],
)
def test_an_engine_stops_with_the_last_tier_that_should_be_served(
    tiers: Sequence[Tier], names: list[str], services: list[str], *, reroutes: bool
) -> None:
    assert tier_requests.stops(tiers, names) == Effects(services, reroutes)


def test_of_two_requests_the_second_sees_the_first(db: Database) -> None:
    stack.replace(db, TIERS)

    assert tier_requests.stop(db, ["fast"]) == Effects([], True)
    assert tier_requests.stop(db, ["standard", "longctx"]) == Effects(["standard"], False)
    assert tier_requests.start(db, ["longctx"]) == Effects(["standard"], True)
    assert {tier.name for tier in stack.tiers(db) if tier.desired == "up"} == {"longctx", "coder"}
    assert tier_requests.start(db, ["longctx"]) == Effects(["standard"], False)
    assert tier_requests.start(db, ["coder", "gateway", "standard"]) == Effects(["coder", "gateway", "standard"], True)


def test_the_gateway_is_told_only_where_it_should_run(db: Database) -> None:
    stack.replace(db, TIERS)
    assert [job.kind for job in tier_requests.reroute(db)] == ["configure"]

    service.ensure(db, "gateway", "gateway", 4000)
    service.set_desired(db, "gateway", "up")
    assert [job.kind for job in tier_requests.reroute(db, after=["start standard"])] == ["configure", "start"]


def test_names_lead_to_services_each_once() -> None:
    names = ["longctx", "gateway", "fast", "coder", "nonsense"]
    assert stack.services(TIERS, names) == ["standard", "gateway", "coder", "nonsense"]


def test_a_tier_has_its_name_before_an_engine_that_serves_others() -> None:
    """After `standard` was removed and added again with another model, its engine has another name."""
    again = dataclasses.replace(OWN, name="standard-2")
    tiers = [Tier("fast", MAIN), Tier("standard", again)]
    assert stack.services(tiers, ["standard"]) == ["standard-2"]
    assert tier_requests.stops(tiers, ["standard"]) == Effects(["standard-2"], False)
    assert tier_requests.stops(tiers, ["fast"]) == Effects(["standard"], False)
