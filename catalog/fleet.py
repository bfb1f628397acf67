"""Which machines of a fleet serve which tiers, and with which models, so that together they serve an intent best.

Each machine takes a role: all tiers, some of them, or none. A machine with fewer tiers has its whole memory for them,
and so a larger model; machines with the same tiers are replicas. No one chooses which machine answers, so a tier is
worth the mean of its machines, by the answers that each gives. The roles are chosen together: by what the tiers are
worth, by the answers that the machines give side by side, by what is left when one is away, and by how little changes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace

from catalog.fit import PREFILL_STEP
from catalog.intent import FAST, INTENTS, LONGCTX, STANDARD, TIERS, Wish
from catalog.machine import Machine
from catalog.model import Model
from catalog.offer import Reuses, full_attention, rate, worth_at
from catalog.pick import Pick, Recommendation
from catalog.problems import TooSmall
from catalog.score import compose, recommend
from catalog.speed import Measured
from state.classes import dataclass

ROLES = (TIERS, (STANDARD,), (FAST,), (STANDARD, LONGCTX), (FAST, LONGCTX))
"""Which tiers a machine may have. longctx alone is no role: its model serves standard or fast as well."""
SECOND = 2.0
"""Points that a second machine for a tier is worth: one may go away."""
USED = 3.0
"""Points that it is worth that a machine serves at all; one that does more harm is offered for nothing."""
CHANGE = 1.0
"""Points by which the fleet must get better for each machine that is changed: a change is a download and a restart."""
ALL_LAYOUTS = 2500
"""Every layout is compared where there are no more than this; three machines have fewer."""
ROUNDS = 12
"""Steps in which the share of each tier in each machine's time is settled."""


@dataclass(frozen=True)
class FleetMachine:
    """One machine of the fleet, and what is known there."""

    name: str
    machine: Machine
    budget_bytes: int
    now: Mapping[str, tuple[str, str]]
    """Tier -> model and quant that it serves now; empty where there is no stack."""
    measured: Sequence[Measured] = ()
    reuses: Reuses = full_attention
    stays: bool = False
    """Whether it is to stay as it is."""
    plans: bool = False
    """Whether it is the one that plans: apps ask its own gateway, so it always serves."""


@dataclass(frozen=True)
class Role:
    """What one machine serves."""

    name: str
    """Of the machine."""
    picks: tuple[Pick, ...] = ()
    """Nothing where it is offered for nothing."""
    worth: Mapping[str, float] = field(default_factory=dict[str, float])
    """Tier -> points."""
    speeds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Tier -> tokens/s of one answer."""
    stays: bool = False
    """Whether it is what the machine serves now."""

    @property
    def choice(self) -> dict[str, str]:
        """Return "model quant" by tier, as setup takes it."""
        return {pick.tier: f"{pick.model} {pick.quant}" for pick in self.picks}


@dataclass(frozen=True)
class FleetPlan:
    """The roles of all machines."""

    intent: str
    roles: tuple[Role, ...]
    """One for each machine that was planned for, in their order."""
    alone: tuple[Role, ...]
    """What each would serve on its own, as setup recommends it; those that could serve nothing are left out."""
    unplanned: Mapping[str, str]
    """Machines that nothing can be said of, and why."""

    @property
    def changes(self) -> list[Role]:
        """Return the roles that are others than the machines have now."""
        return [role for role in self.roles if not role.stays]

    def serving(self, tier: str) -> list[Role]:
        """Return the machines that have a tier."""
        return [role for role in self.roles if tier in role.worth]


def plan(machines: Sequence[FleetMachine], models: Mapping[str, Model], intent: str = "balanced") -> FleetPlan:
    """Return the best roles for these machines. Raises KeyError for an unknown intent.

    A fleet of one gets what setup recommends for that machine.
    """
    wishes = INTENTS[intent]
    offered = _roles(machines, models, intent)
    able = {name: roles for name, roles in offered.items() if roles}
    if len(able) > 1:
        able |= {
            entry.name: [*able[entry.name], Role(entry.name)]
            for entry in machines
            if entry.name in able and not (entry.stays or entry.plans)
        }
    layout = _best(list(able.values()), wishes) if able else ()
    alone = [next((role for role in roles if len(role.worth) == len(TIERS)), roles[0]) for roles in able.values()]
    unplanned = {entry.name: _unplanned(entry, models) for entry in machines if entry.name not in able}
    return FleetPlan(intent, tuple(layout), tuple(alone), unplanned)


def _unplanned(entry: FleetMachine, models: Mapping[str, Model]) -> str:
    """Return why a machine has no role."""
    unknown = [model for model, quant in entry.now.values() if model not in models or quant not in models[model].quants]
    if entry.stays and unknown:
        return f"stays as it is, with {unknown[0]}, which the catalog does not have"
    return "stays as it is" if entry.stays else "no model of the catalog fits in its memory"


def _roles(machines: Sequence[FleetMachine], models: Mapping[str, Model], intent: str) -> dict[str, list[Role]]:
    """Return what each machine could serve; of machines that are the same, it is found out once."""
    known_roles: dict[tuple[object, ...], list[Role]] = {}
    offered: dict[str, list[Role]] = {}
    for entry in machines:
        present = _present(entry, models, intent)
        if entry.stays:
            offered[entry.name] = [present] if present else []
            continue
        alike = (entry.machine, entry.budget_bytes, tuple(entry.measured), *map(entry.reuses, models.values()))
        if alike not in known_roles:
            known_roles[alike] = [role for tiers in ROLES if (role := _recommended(entry, models, intent, tiers))]
        fresh = [replace(role, name=entry.name) for role in known_roles[alike]]
        offered[entry.name] = _present_first(fresh, present)
    return offered


def _present_first(roles: Sequence[Role], present: Role | None) -> list[Role]:
    """Return the roles, with the one that the machine has now in place of the same one as recommended."""
    if present is None:
        return list(roles)
    return [present, *(role for role in roles if role.choice != present.choice)]


def _present(entry: FleetMachine, models: Mapping[str, Model], intent: str) -> Role | None:
    """Return what a machine serves now; None where the catalog cannot judge it."""
    if not entry.now or not entry.now.keys() <= set(TIERS):
        return None
    with suppress(KeyError, ValueError, TooSmall):
        recommendation = compose(
            entry.machine, models, entry.now, intent,
            budget_bytes=entry.budget_bytes, measured=entry.measured, reuses=entry.reuses,
        )  # fmt: skip
        return replace(_role(entry, models, recommendation, intent), stays=True)
    return None


def _recommended(entry: FleetMachine, models: Mapping[str, Model], intent: str, tiers: Sequence[str]) -> Role | None:
    """Return what setup would recommend for these tiers; None where nothing fits."""
    with suppress(TooSmall):
        recommendation = recommend(
            entry.machine, models, intent,
            budget_bytes=entry.budget_bytes, measured=entry.measured, tiers=tiers, reuses=entry.reuses,
        )  # fmt: skip
        return _role(entry, models, recommendation, intent)
    return None


def _role(entry: FleetMachine, models: Mapping[str, Model], recommendation: Recommendation, intent: str) -> Role:
    """Return a stack with what each of its tiers is worth."""
    wishes = INTENTS[intent]
    worth: dict[str, float] = {}
    for pick in recommendation.picks:
        rated = rate(
            entry.machine, models, pick.model, pick.quant,
            contexts=(max(PREFILL_STEP, pick.context),), measured=entry.measured, reuses=entry.reuses,
        )  # fmt: skip
        worth[pick.tier] = worth_at(rated, pick.context, wishes[pick.tier], own=not pick.shares)
    return Role(
        entry.name, recommendation.picks, worth, {pick.tier: pick.speed.decode for pick in recommendation.picks}
    )


# ---------------------------------------------------------------- layouts


def value(layout: Sequence[Role], wishes: Mapping[str, Wish]) -> float:
    """Return what a layout is worth in points; minus infinity where a tier has no machine."""
    shares = serve(layout, wishes)
    if not shares.rate:
        return -math.inf
    total = wishes[STANDARD].speed * math.log2(shares.rate)
    total += sum(USED * bool(role.picks) - CHANGE * (not role.stays) for role in layout)
    for tier, wish in wishes.items():
        worths = [
            (role.worth[tier], tokens[tier])
            for role, tokens in zip(layout, shares.tokens, strict=True)
            if tier in tokens
        ]
        total += sum(worth * tokens for worth, tokens in worths) / sum(tokens for _, tokens in worths)
        total += SECOND * wish.weight if len(worths) > 1 else 0.0
    return total


@dataclass(frozen=True)
class Shares:
    """What the machines do at the intent's mix of requests, one answer at a time each."""

    rate: float
    """Tokens/s of all together; 0 where a tier has no machine."""
    tokens: Sequence[Mapping[str, float]] = ()
    """By machine and tier."""


def serve(layout: Sequence[Role], wishes: Mapping[str, Wish]) -> Shares:
    """Return how the machines share the requests.

    The mix is that of the requests side by side which each tier wants. A machine gives its time to the tiers that need
    it most: the shares are settled step by step, and the tier that comes off worst bounds the sum.
    """
    whole = sum(wish.concurrency for wish in wishes.values())
    demand = {tier: wish.concurrency / whole for tier, wish in wishes.items()}
    need, best = dict(demand), Shares(0.0)
    for _ in range(ROUNDS):
        tokens = [_tokens(role.speeds, need) for role in layout]
        met = {tier: sum(served.get(tier, 0.0) for served in tokens) / wanted for tier, wanted in demand.items()}
        least = min(met.values())
        if least <= 0:
            return best
        if least > best.rate:
            best = Shares(least, tokens)
        need = {tier: need[tier] * (least / met[tier]) ** 0.5 for tier in need}
    return best


def _tokens(speeds: Mapping[str, float], need: Mapping[str, float]) -> dict[str, float]:
    """Return the tokens/s that one machine gives each of its tiers, in proportion to what they need."""
    time = sum(need[tier] / speed for tier, speed in speeds.items())
    return {tier: need[tier] / time for tier in speeds}


def _best(options: Sequence[Sequence[Role]], wishes: Mapping[str, Wish]) -> tuple[Role, ...]:
    """Return the worthiest layout; of several the one that comes first."""
    if math.prod(map(len, options)) <= ALL_LAYOUTS:
        return max(itertools.product(*options), key=lambda layout: value(layout, wishes))
    starts = [
        tuple(roles[0] for roles in options),
        *(tuple(_with(roles, tiers) for roles in options) for tiers in ROLES),
    ]
    singly = [_climbed(start, options, wishes, 1) for start in starts]
    return _climbed(max(singly, key=lambda layout: value(layout, wishes)), options, wishes, 2)


def _with(roles: Sequence[Role], tiers: Sequence[str]) -> Role:
    """Return the role that has these tiers, or the first."""
    return next((role for role in roles if set(role.worth) == set(tiers)), roles[0])


def _climbed(
    layout: tuple[Role, ...], options: Sequence[Sequence[Role]], wishes: Mapping[str, Wish], together: int
) -> tuple[Role, ...]:
    """Return what a layout becomes while another role for a machine, or for two `together`, is better."""
    best, most, progress = layout, value(layout, wishes), True
    while progress:
        progress = False
        for where in itertools.combinations(range(len(options)), together):
            for roles in itertools.product(*(options[at] for at in where)):
                after = list(best)
                for at, role in zip(where, roles, strict=True):
                    after[at] = role
                if (worth := value(after, wishes)) > most + LEAST:
                    best, most, progress = tuple(after), worth, True
    return best


LEAST = 1e-6
"""Points that count as better: floating point rounds."""
