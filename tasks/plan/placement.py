"""Whether a model may have a tier of its own beside the others, and with how much context. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from catalog import units
from catalog.fit import cache_bytes, memory, step_for
from catalog.intent import TIERS
from catalog.model import Model
from catalog.offer import Reuses, full_attention
from state.errors import DoesNotFit, UsageProblem
from state.settings import TIER_PORTS
from state.stack import Engine, Tier, engines_of
from tasks.front import plan as front
from tasks.kinds import KINDS
from tasks.plan import gateway, page
from tasks.plan.serving_options import AS_TOLD, ServingOptions, applied

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SERVICES = {gateway.SERVICE, page.SERVICE, front.SERVICE}
TAKEN = frozenset({*_SERVICES, gateway.CLOUD, "worker", *gateway.ALIASES, *KINDS} - set(TIERS))
"""Names of services, of what clients ask for unasked, and of jobs, beside which a tier stands in a chain."""
LEAST_CONTEXT, MOST_CONTEXT = 2_048, 131_072
"""Tokens. Below, no chat fits; above, a cache eats what other tiers could use."""
ON_DEMAND_CONTEXT = 32_768
"""Tokens of a model on demand: enough for an agent, and not all of the memory that such models share."""


def place(
    name: str,
    model: Model,
    quant: str,
    before: Sequence[Tier],
    *,
    base_port: int,
    budget_bytes: int,
    weights: str = "",
    options: ServingOptions = AS_TOLD,
    reuses: Reuses = full_attention,
) -> Tier:
    """Return the tier `name` that serves `model` beside `before`: with the engine that does already, or with a new one.

    A new engine gets the most context that fits. `budget_bytes` is for all engines together; `options` are what the
    user said of this model; `reuses` says of which models prompts are read once here. Raises UsageProblem for a name
    or an option that cannot be, DoesNotFit with the sum.
    """
    check_name(name, before)
    model = applied(model, options)
    engines = engines_of(before)
    shared = next((engine for engine in engines if _serves(engine, model, quant, options)), None)
    if shared:
        return Tier(name, shared)
    keeps = reuses(model)
    context = _context(model, quant, engines, budget_bytes, options, keeps=keeps)
    engine = _engine(engine_name(name, before), model, quant, context, keeps=keeps)
    return Tier(name, replace(engine, port=_port(engines, base_port), weights=weights))


def on_demand(name: str, model: Model, quant: str, free_bytes: int, *, weights: str, keeps: bool) -> Engine:
    """Return the engine `name` for a model that is loaded when it is asked for; it has no port yet.

    Its window is the longest that fits in `free_bytes`, which all such models share, up to ON_DEMAND_CONTEXT; the
    least one where none fits. `keeps`: whether prompts are read once here.
    """
    context = min(ON_DEMAND_CONTEXT, _longest(model, quant, free_bytes, keeps=keeps))
    return replace(_engine(name, model, quant, context, keeps=keeps), weights=weights)


def _engine(name: str, model: Model, quant: str, context: int, *, keeps: bool) -> Engine:
    """Return an engine that serves one request at a time with `context` tokens; it has no port and no weights yet."""
    return Engine(
        name=name,
        model=model.id,
        quant=quant,
        source=model.quants[quant].source,
        port=0,
        context=context,
        memory_bytes=_bytes(model, quant, context, keeps=keeps),
        cache_bytes=_kept(model, context, keeps=keeps),
        concurrency=1,
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        vision=model.vision,
        prefill_step=step_for(model, context),
    )


def _serves(engine: Engine, model: Model, quant: str, options: ServingOptions) -> bool:
    """Return whether an engine serves a model already, and as the user wants it where the user said so."""
    return (engine.model, engine.quant) == (model.id, quant) and (
        not options
        or (
            engine.context == (options.context or engine.context)
            and (engine.tool_parser, engine.reasoning_parser) == (model.tool_parser, model.reasoning_parser)
        )
    )


def _context(
    model: Model, quant: str, engines: Sequence[Engine], budget_bytes: int, options: ServingOptions, *, keeps: bool
) -> int:
    """Return the context, in tokens, with which a model fits beside the engines. Raises DoesNotFit."""
    free = budget_bytes - sum(engine.memory_bytes for engine in engines)
    context = options.context or _longest(model, quant, free, keeps=keeps)
    need = _bytes(model, quant, context, keeps=keeps)
    require_room(f"{model.id} {quant}", need, engines, budget_bytes, context)
    return context


def require_room(subject: str, need: int, engines: Sequence[Engine], budget_bytes: int, context: int = 0) -> None:
    """Raise DoesNotFit, with the sum, where a model that needs `need` bytes does not fit beside the engines.

    `context`: the tokens of its window, where it has a choice of them.
    """
    free = budget_bytes - sum(engine.memory_bytes for engine in engines)
    if need > free:
        amount = units.memory(need) + (f" with a window of {context:,} tokens" if context else "")
        raise DoesNotFit(
            f"{subject} needs {amount}, and {units.memory(max(0, free))} of the budget of "
            f"{units.memory(budget_bytes)} is left beside "
            f"{', '.join(engine.name for engine in engines) or 'nothing'}.",
            done="Nothing was changed.",
            hint="mlxq setup --remove TIER",
        )


def engine_name(tier: str, before: Sequence[Tier]) -> str:
    """Return a name for the engine of a new tier: the tier's own, unless one of `before` has it.

    An engine keeps its name while any tier is left that it serves, also when that of its name is gone.
    """
    taken = {name for other in before for name in (other.name, other.engine.name)}
    numbered = (f"{tier}-{number}" for number in range(2, len(taken) + 3))
    return tier if tier not in taken else next(name for name in numbered if name not in taken)


def _longest(model: Model, quant: str, free: int, *, keeps: bool) -> int:
    """Return the longest window that fits, or the least one: doublings, up to what the model was made for."""
    context = MOST_CONTEXT
    while context > model.context or (context > LEAST_CONTEXT and _bytes(model, quant, context, keeps=keeps) > free):
        context //= 2
    return context


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


def _bytes(model: Model, quant: str, context: int, *, keeps: bool) -> int:
    step = step_for(model, context)
    return memory(model, quant, context, prefill_step=step).total + _kept(model, context, keeps=keeps)


def _kept(model: Model, context: int, *, keeps: bool) -> int:
    """Return the bytes to keep of earlier prompts: those of one full window where they can be used, else none."""
    return cache_bytes(model, context) if keeps else 0


def _port(before: Sequence[Engine], base_port: int) -> int:
    """Return the first of the engines' ports that none has."""
    ports = {engine.port for engine in before}
    free = next((port for port in range(base_port, base_port + TIER_PORTS) if port not in ports), None)
    if free is None:
        raise UsageProblem(f"There are {len(before)} engines, and {TIER_PORTS} are the most.", hint="mlxq status")
    return free
