"""Whether a model may have a tier of its own beside the others, and with how much context. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from catalog import units
from catalog.fit import cache_bytes, memory, step_for
from catalog.model import Model
from catalog.offer import full_attention
from state.errors import DoesNotFit, UsageProblem
from state.settings import TIER_PORTS
from state.stack import Tier
from tasks.kinds import KINDS
from tasks.plan import gateway, page

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
TAKEN = frozenset({gateway.SERVICE, page.SERVICE, gateway.CLOUD, "worker", *gateway.ALIASES, *KINDS})
"""Names of services, of what clients ask for unasked, and of jobs, beside which a tier stands in a chain."""
LEAST_CONTEXT, MOST_CONTEXT = 2_048, 131_072
"""Tokens. Below, no chat fits; above, a cache eats what other tiers could use."""


def assign_ports(
    name: str, model: Model, quant: str, before: Sequence[Tier], *, base_port: int, budget_bytes: int, weights: str = ""
) -> Tier:
    """Return the tier `name` that serves `model` beside `before`, with the most context that fits the budget.

    `budget_bytes` is for all tiers together. Raises UsageProblem for a name that cannot be, DoesNotFit with the sum.
    """
    check_name(name, before)
    free = budget_bytes - sum(tier.memory_bytes for tier in before)
    context = MOST_CONTEXT
    while context > model.context or (context > LEAST_CONTEXT and _bytes(model, quant, context) > free):
        context //= 2
    need = _bytes(model, quant, context)
    if need > free:
        raise DoesNotFit(
            f"{model.id} {quant} needs {units.memory(need)}, and {units.memory(max(0, free))} of the budget of "
            f"{units.memory(budget_bytes)} is left beside {', '.join(tier.name for tier in before) or 'nothing'}.",
            done="Nothing was changed.",
            hint="mlxq setup --remove TIER",
        )
    return Tier(
        name=name,
        model=model.id,
        quant=quant,
        source=model.quants[quant].source,
        port=_port(before, base_port),
        context=context,
        memory_bytes=need,
        cache_bytes=_kept(model, context),
        concurrency=1,
        weights=weights,
        max_tokens=min(4096, context // 2),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        vision=model.vision,
        prefill_step=step_for(model, context),
    )


def check_name(name: str, before: Sequence[Tier]) -> None:
    """Hold a tier's name to what a name may be. Raises UsageProblem."""
    if not NAME.fullmatch(name):
        raise UsageProblem(f"{name!r} is no name for a tier: small letters, digits and dashes.")
    if name in TAKEN:
        raise UsageProblem(f"{name} cannot be a tier's name: it means something else already.")
    if holder := next((tier for tier in before if tier.name == name), None):
        raise UsageProblem(
            f"There is a tier {name} already; it serves {holder.model}.", hint=f"mlxq setup --remove {name}"
        )


def _bytes(model: Model, quant: str, context: int) -> int:
    return memory(model, quant, context, prefill_step=step_for(model, context)).total + _kept(model, context)


def _kept(model: Model, context: int) -> int:
    """Return the bytes to keep of earlier prompts: those of one full window where they can be used, else none."""
    return cache_bytes(model, context) if full_attention(model) else 0


def _port(before: Sequence[Tier], base_port: int) -> int:
    """Return the first of the tiers' ports that none has."""
    ports = {tier.port for tier in before}
    free = next((port for port in range(base_port, base_port + TIER_PORTS) if port not in ports), None)
    if free is None:
        raise UsageProblem(f"There are {len(before)} tiers, and {TIER_PORTS} are the most.", hint="mlxq status")
    return free
