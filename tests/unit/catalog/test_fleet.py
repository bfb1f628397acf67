"""The machines of a fleet are planned together: each tier has a machine, and no change is made for nothing."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import share
from support.machines import KNOWN, MACS, named

from catalog.fleet import CHANGE, SECOND, FleetMachine, FleetPlan, Role, plan, serve, value
from catalog.intent import AGENTS, FAST, INTENTS, LONGCTX, STANDARD, TIERS
from catalog.machine import Machine, budget
from catalog.score import recommend

FEW = [named(*words) for words in (("M1", 8), ("M2", 16), ("M4 Pro", 24), ("M4 Pro", 48), ("M3 Ultra", 256))]


def machine(name: str, what: Machine, now: dict[str, tuple[str, str]] | None = None) -> FleetMachine:
    return FleetMachine(name, what, budget(what), now or {})


@functools.cache
def planned(*machines: Machine, intent: str = "balanced") -> FleetPlan:
    return plan([machine(f"n{number}", one) for number, one in enumerate(machines)], KNOWN, intent)


def choices(made: FleetPlan) -> list[dict[str, str]]:
    return [role.choice for role in made.roles]


def after(made: FleetPlan, machines: list[Machine]) -> list[FleetMachine]:
    """Give the machines as they are once the plan was applied."""
    now = {role.name: {pick.tier: (pick.model, pick.quant) for pick in role.picks} for role in made.roles}
    return [machine(f"n{number}", one, now.get(f"n{number}")) for number, one in enumerate(machines)]


@settings(deadline=None, max_examples=share(8))
@given(machines=st.lists(st.sampled_from(MACS), min_size=1, max_size=3), intent=st.sampled_from(sorted(INTENTS)))
def test_every_tier_has_a_machine_and_every_machine_its_memory(machines: list[Machine], intent: str) -> None:
    made = planned(*machines, intent=intent)

    assert {role.name for role in made.roles} | made.unplanned.keys() == {f"n{n}" for n in range(len(machines))}
    if made.roles:
        assert all(made.serving(tier) for tier in TIERS)
        worth = value([replace(role, stays=False) for role in made.roles], INTENTS[intent])
        assert worth >= value(made.alone, INTENTS[intent]), "together is never worse than each alone"
    for role in made.roles:
        own = machines[int(role.name[1:])]
        engines = [pick for pick in role.picks if not pick.shares]
        assert sum(pick.resident for pick in engines) <= budget(own)


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize("one", FEW, ids=lambda one: f"{one.chip}-{one.memory_bytes >> 30}")
def test_a_fleet_of_one_gets_what_setup_recommends(one: Machine, intent: str) -> None:
    (role,) = planned(one, intent=intent).roles
    alone = recommend(one, KNOWN, intent)

    assert role.choice == {pick.tier: f"{pick.model} {pick.quant}" for pick in alone.picks}


def test_two_machines_have_a_larger_model_where_each_alone_has_a_small_one_too() -> None:
    """Alone, each has a small model for fast beside the large one; together, one has all its memory for it."""
    one = named("M4 Pro", 48)
    made, alone = planned(one, one, intent=AGENTS), planned(one, intent=AGENTS).roles[0]

    assert [set(role.worth) for role in made.roles] == [{STANDARD, LONGCTX}, {FAST, LONGCTX}]
    before = {pick.tier: pick for pick in alone.picks}
    after_ = {pick.tier: pick for role in made.roles for pick in role.picks}
    assert after_[STANDARD].quality.points >= before[STANDARD].quality.points
    assert after_[FAST].quality.points > 2 * before[FAST].quality.points


def test_large_machines_of_one_kind_are_replicas() -> None:
    large = named("M4 Max", 128)
    for intent in INTENTS:
        first, second = planned(large, large, intent=intent).roles
        assert first.choice == second.choice
        assert set(first.worth) == set(TIERS)


def test_a_weak_machine_does_not_serve_what_a_strong_one_serves_better() -> None:
    made = planned(named("M3 Ultra", 256), named("M1", 8))

    strong, weak = made.roles
    assert STANDARD in strong.worth
    assert STANDARD not in weak.worth


def test_a_machine_that_only_does_harm_is_offered_for_nothing() -> None:
    made = planned(named("M3 Ultra", 256), named("M4 Pro", 24), named("M1", 8), intent=AGENTS)

    assert [bool(role.picks) for role in made.roles] == [True, True, False]
    assert made.changes[-1].choice == {}


def test_ten_machines_of_ten_kinds_are_planned_and_more_throughput_comes_of_it() -> None:
    kinds = [("M1", 8), ("M1", 16), ("M2", 16), ("M2 Pro", 32), ("M3 Max", 64)]
    kinds += [("M4", 16), ("M4 Pro", 48), ("M4 Max", 128), ("M3 Ultra", 96), ("M3 Ultra", 512)]
    made = planned(*(named(*kind) for kind in kinds))

    assert len(made.roles) == 10
    best = planned(named("M3 Ultra", 512))
    wishes = INTENTS["balanced"]
    assert serve(made.roles, wishes).rate > 3 * serve(best.roles, wishes).rate
    standards = {pick.model for role in made.serving(STANDARD) for pick in role.picks if pick.tier == STANDARD}
    assert standards == {pick.model for pick in best.roles[0].picks if pick.tier == STANDARD}, "the mean is held up"


@pytest.mark.parametrize("intent", INTENTS)
def test_a_fleet_that_is_as_planned_stays(intent: str) -> None:
    machines = [named("M4 Pro", 48), named("M4", 16), named("M4", 16)]
    made = planned(*machines, intent=intent)
    again = plan(after(made, machines), KNOWN, intent)

    assert again.changes == []
    assert choices(again) == choices(made)


def test_what_was_begun_is_continued() -> None:
    """Where some machines are changed and others not, the same plan comes out for the rest."""
    machines = [named("M4 Max", 36)] * 3
    alone = planned(machines[0]).roles[0]
    before = {pick.tier: (pick.model, pick.quant) for pick in alone.picks}
    made = plan([machine(f"n{number}", one, before) for number, one in enumerate(machines)], KNOWN)
    assert made.changes, "there is something to continue"
    half = after(made, machines)
    begun = made.changes[-1].name
    half = [machine(entry.name, entry.machine, before) if entry.name == begun else entry for entry in half]

    assert choices(plan(half, KNOWN)) == choices(made)


def test_a_machine_that_is_kept_is_planned_around() -> None:
    small = named("M4 Pro", 24)
    now = {FAST: ("qwen3.5-4b", "int4")}
    kept = replace(machine("a", small, now), stays=True)
    made = plan([kept, machine("b", small)], KNOWN)

    assert made.roles[0].choice == {FAST: "qwen3.5-4b int4"}
    assert {STANDARD, LONGCTX} <= set(made.roles[1].worth)
    unknown = replace(kept, now={"standard": ("my-own", "int4")})
    assert plan([unknown, machine("b", small)], KNOWN).unplanned == {
        "a": "stays as it is, with my-own, which the catalog does not have"
    }


def test_no_machine_and_one_that_is_too_small_are_said() -> None:
    tiny = replace(named("M1", 8), memory_bytes=2**20, usable_bytes=2**20)

    assert plan([], KNOWN).roles == ()
    made = plan([machine("a", tiny)], KNOWN)
    assert (made.roles, made.unplanned) == ((), {"a": "no model of the catalog fits in its memory"})
    with pytest.raises(KeyError):
        plan([machine("a", tiny)], KNOWN, "none")


WISHES = INTENTS["balanced"]


def role(name: str, worth: float, speed: float, *tiers: str, stays: bool = True) -> Role:
    return Role(name, (), dict.fromkeys(tiers, worth), dict.fromkeys(tiers, speed), stays=stays)


def test_a_layout_is_worth_what_its_machines_give() -> None:
    every = role("a", 50, 40, *TIERS)
    assert value([every], WISHES) > value([role("a", 40, 40, *TIERS)], WISHES)
    assert value([role("a", 50, 40, STANDARD)], WISHES) == float("-inf"), "a tier has no machine"
    assert value([every, role("b", 50, 40, *TIERS)], WISHES) > value([every], WISHES) + SECOND
    assert value([every, role("b", -40, 40, *TIERS)], WISHES) < value([every], WISHES), "a poor one lowers the mean"
    assert value([replace(every, stays=False)], WISHES) == pytest.approx(value([every], WISHES) - CHANGE)


def test_machines_share_what_is_asked() -> None:
    """By hand: 40 % standard, 40 % fast, 20 % longctx."""
    assert serve([role("a", 1, 40, *TIERS)], WISHES).rate == pytest.approx(40)
    assert serve([role("a", 1, 40, *TIERS), role("b", 1, 40, *TIERS)], WISHES).rate == pytest.approx(80)
    apart = serve([role("a", 1, 60, STANDARD, LONGCTX), role("b", 1, 40, FAST)], WISHES)
    assert apart.rate == pytest.approx(100), "60 of 0.6 and 40 of 0.4"
    helped = serve([role("a", 1, 60, STANDARD, LONGCTX), role("b", 1, 80, FAST, LONGCTX)], WISHES)
    assert helped.rate == pytest.approx(140, rel=0.06), "56 for standard, 56 for fast, and 28 of both for longctx"
    assert serve([role("a", 1, 40, FAST)], WISHES).rate == 0
