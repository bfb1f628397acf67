"""The plan of a fleet as people and programs see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catalog import units
from catalog.explain import tokens
from catalog.fleet import Role, serve
from catalog.intent import INTENTS, TIERS
from catalog.pick import Pick
from mlxq import render
from tasks.fleet.planning import PlannedFleet

HEAD = ("NODE", "TIERS", "MODEL", "QUANT", "CTX", "TOK/S", "CHANGE")


def document(planned: PlannedFleet) -> dict[str, Any]:
    """Return a plan for programs. Sizes are bytes, speeds tokens/s."""
    wishes = INTENTS[planned.plan.intent]
    return {
        "intent": planned.plan.intent,
        "nodes": [_node(planned, role) for role in planned.plan.roles],
        "unplanned": dict(planned.plan.unplanned),
        "changes": [role.name for role in planned.changes],
        "download_bytes": sum(size for role in planned.changes for size in planned.fetches(role).values()),
        "tokens_per_s": round(serve(planned.plan.roles, wishes).rate, 1),
        "tokens_per_s_alone": round(serve(planned.plan.alone, wishes).rate, 1),
    }


def _node(planned: PlannedFleet, role: Role) -> dict[str, Any]:
    return {
        "name": role.name,
        "change": not role.stays,
        "now": {tier: " ".join(words) for tier, words in planned.machines[role.name].plan.now.items()},
        "tiers": {
            pick.tier: {
                "model": pick.model,
                "quant": pick.quant,
                "context": pick.context,
                "decode_tps": round(pick.speed.decode, 1),
                "quality": round(pick.quality.points, 1),
                "shares": pick.shares or None,
            }
            for pick in role.picks
        },
        "download_bytes": 0 if role.stays else sum(planned.fetches(role).values()),
    }


def show(planned: PlannedFleet, *, explain: bool = False, err: bool = False) -> None:
    """Print a plan: a row for each engine, what is left out, and what all machines do together."""
    rows = [row for role in planned.plan.roles for row in _rows(planned, role)]
    render.table(list(HEAD), rows, right=(4, 5), err=err)
    lines = [f"{name} is not planned for: {reason}." for name, reason in planned.plan.unplanned.items()]
    for line in [*lines, *_together(planned), *(_reasons(planned) if explain else [])]:
        render.prose(line, err=err)


def _rows(planned: PlannedFleet, role: Role) -> list[list[Any]]:
    if not role.picks:
        return [[role.name, "-", "nothing", "-", "-", "-", "drain"]]
    engines = [pick for pick in role.picks if not pick.shares]
    return [[role.name, *_engine(role, pick), _change(planned, role, pick)] for pick in engines]


def _engine(role: Role, pick: Pick) -> list[str]:
    tiers = [pick.tier, *(other.tier for other in role.picks if other.shares == pick.tier)]
    return [" ".join(tiers), pick.model, pick.quant, tokens(pick.context), f"{pick.speed.decode:.0f}"]


def _change(planned: PlannedFleet, role: Role, pick: Pick) -> str:
    """Return what an engine takes: nothing, a download, or a start of weights that are there."""
    if role.stays:
        return "-"
    size = planned.fetches(role).get(f"{pick.model} {pick.quant}")
    return f"download {units.files(size)}" if size else "start"


def _together(planned: PlannedFleet) -> list[str]:
    """Return what the machines do together, against what each would do as setup recommends it alone."""
    plan, wishes = planned.plan, INTENTS[planned.plan.intent]
    if len(plan.roles) < 2:  # noqa: PLR2004 (a machine alone)
        return ["A fleet of one gets what setup recommends."] if plan.roles else []
    together, alone = serve(plan.roles, wishes), serve(plan.alone, wishes)
    lines = [f"Together about {together.rate:.0f} tokens/s at the requests of {plan.intent}, one answer a machine."]
    gains = [text for tier in TIERS if (text := _gain(plan.roles, plan.alone, tier))]
    if gains or round(together.rate) != round(alone.rate):
        apart = f"With each machine as setup recommends it alone: {alone.rate:.0f} tokens/s"
        lines.append(f"{apart}{'; ' if gains else ''}{', '.join(gains)}.")
    if single := [tier for tier in TIERS if len(plan.serving(tier)) == 1]:
        lines.append(
            f"One machine alone has {units.listed(single)}: "
            "while it is away, the others answer for it with their own models."
        )
    return lines


def _gain(roles: Sequence[Role], alone: Sequence[Role], tier: str) -> str:
    """Return how the best model of a tier would be another if each machine stood alone; empty where it would not."""
    now, before = _best(roles, tier), _best(alone, tier)
    if not now or not before or now.model == before.model:
        return ""
    return (
        f"{tier} {before.model} (quality {before.quality.points:.0f}) instead of {now.model} ({now.quality.points:.0f})"
    )


def _best(roles: Sequence[Role], tier: str) -> Pick | None:
    picks = [pick for role in roles for pick in role.picks if pick.tier == tier]
    return max(picks, key=lambda pick: pick.quality.points, default=None)


def _reasons(planned: PlannedFleet) -> list[str]:
    """Return why each machine has its tiers and models."""
    lines = [""]
    for role in planned.plan.roles:
        lines.append(f"{role.name}: {_why(planned, role)}")
        lines += [f"  {pick.tier}: {pick.model} {pick.quant}: {'; '.join(pick.reasons)}." for pick in role.picks]
    return lines


def _why(planned: PlannedFleet, role: Role) -> str:
    """Return in a sentence what a machine's role is, beside what it would be alone."""
    if not role.picks:
        return "whatever it served would make the answers of its tiers worse; it is offered for nothing."
    alone = next(entry for entry in planned.plan.alone if entry.name == role.name)
    replicas = [other.name for other in planned.plan.roles if other.name != role.name and other.choice == role.choice]
    words = "stays as it is" if role.stays else f"serves {units.listed(role.worth)}"
    if replicas:
        words += f", the same as {units.listed(replicas)}"
    if set(role.worth) != set(alone.worth):
        models = dict.fromkeys(f"{pick.tier} {pick.model}" for pick in alone.picks)
        words += f"; alone it would serve {', '.join(models)}"
    return f"{words}."
