"""What LiteLLM is told: the YAML it reads, its environment, its command line.

Every number here was measured against LiteLLM 1.106.2. Its trap: cooldown and retry keys act only under
`router_settings`; elsewhere they are ignored without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from state.errors import UsageProblem
from state.stack import Tier
from tasks.plan.engine import KEPT, marker

SERVICE = "gateway"
LOOPBACK = "127.0.0.1"

TRIAL = "MLXQ_TRIAL_PORT"
"""Names the port on which a gateway is proven beside the one that serves, before it takes that one's place."""

ALIASES: Mapping[str, str] = {
    "default": "standard",
    "gpt-4o": "standard",
    "gpt-4o-mini": "fast",
    "claude-*": "standard",
    "claude-*haiku*": "fast",
}
"""Names that clients send unasked, and the tier that answers. LiteLLM prefers the longer of two patterns."""

CLOUD = "cloud"
"""The group of last resort. It exists only when the person gave a key for it."""

OPENROUTER = "https://openrouter.ai/api/v1"

COOLDOWN_SECONDS = 1
"""A refused connection costs 20-40 ms, so a dead tier is asked again soon; hung ones are killed by the watchdog.

While all tiers rest nobody is answered, also when one of them is back: so the rest is short.
"""

STREAM_SECONDS = 20
"""Longest silence in a stream: four of vllm-mlx's 5 s heartbeats."""

ANSWER_SECONDS = 600
"""Longest whole generation of an answer that is not streamed."""

LEAVE_SECONDS = ANSWER_SECONDS + 10
"""How long a gateway that was replaced may take for the answers in flight."""

_SECRETS = ("LITELLM_MASTER_KEY", "MLXQ_TIER_KEY", "OPENROUTER_API_KEY")

_QUIET = {
    # Without these LiteLLM asks raw.githubusercontent.com at start.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    # PRODUCTION keeps LiteLLM from loading a stray .env of the working folder.
    "LITELLM_MODE": "PRODUCTION",
    # LiteLLM logs a refused request as its own bug, with a traceback; the hook logs one line instead.
    "LITELLM_LOG": "CRITICAL",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    # Together with use_chat_completions_api: without this one /v1/messages answers with empty content.
    "LITELLM_USE_CHAT_COMPLETIONS_URL_FOR_ANTHROPIC_MESSAGES": "True",
}


def configuration(
    tiers: Sequence[Tier], *, cloud_model: str | None = None, aliases: Mapping[str, str] = ALIASES
) -> dict[str, Any]:
    """Give the content of litellm.yaml for these tiers.

    `cloud_model` is an OpenRouter model id and adds the last resort; None leaves no way out of the machine.
    An alias whose tier is not in the stack goes to the first tier. Raises ValueError without a tier.
    """
    if not tiers:
        raise ValueError("a gateway needs at least one tier")
    names = {tier.name: tier for tier in tiers}
    targets = {alias: names.get(name, tiers[0]) for alias, name in aliases.items() if alias not in names}
    groups = {tier.name: tier for tier in tiers} | targets
    models = [_deployment(group, tier) for group, tier in groups.items()]
    if cloud_model:
        models.append(_cloud(cloud_model))
    return {
        "model_list": models,
        "litellm_settings": {"drop_params": True},
        "router_settings": _routing(groups, tiers, cloud=bool(cloud_model)),
        "general_settings": {
            "disable_spend_logs": True,
            "custom_auth": "tasks.gateway.litellm_auth.user_api_key_auth",
        },
    }


def aliases(own: Mapping[str, str], tiers: Sequence[Tier]) -> dict[str, str]:
    """Lay the person's own names over ours. Raises UsageProblem for one that leads nowhere or is taken."""
    names = [tier.name for tier in tiers]
    for alias, tier in own.items():
        if tier not in names:
            raise UsageProblem(
                f"The alias {alias} leads to {tier}, and the stack has no such tier: {', '.join(names)}.",
                hint="mlxq config get aliases",
            )
        if alias in (*names, CLOUD):
            raise UsageProblem(
                f"{alias} cannot be an alias, as it is a tier's own name.", hint="mlxq config get aliases"
            )
    return {**ALIASES, **own}


def environment(
    secrets: Mapping[str, str],
    *,
    base: Mapping[str, str],
    home: str,
    backend: str,
    generation: int,
    cloud_url: str = OPENROUTER,
    cloud_cap_usd: float = 1.0,
) -> dict[str, str]:
    """Give the whole environment of the gateway.

    `secrets` holds what secrets.env holds, and OPENROUTER_API_KEY when the person gave one; `base` is the
    worker's environment, `home` the mlxq home, `backend` one of metal, cpu, cuda, `cloud_cap_usd` what
    the last resort may cost in a day.
    """
    return {
        **{name: base[name] for name in KEPT if name in base},
        **marker(home, SERVICE, generation),
        **_QUIET,
        "PYTHONUNBUFFERED": "1",
        "MLXQ_BACKEND": backend,
        "MLXQ_CLOUD_URL": cloud_url,
        "MLXQ_CLOUD_CAP_USD": str(cloud_cap_usd),
        **{name: secrets[name] for name in _SECRETS if name in secrets},
    }


def argv(python: str, config_path: str, port: int, *, host: str = LOOPBACK) -> list[str]:
    """Give the gateway's command line; it holds no secret."""
    return [python, "-P", "-m", "tasks.gateway", config_path, str(port), "--host", host]


def successors(tier: Tier, tiers: Iterable[Tier]) -> tuple[list[str], list[str]]:
    """Give the tiers that may stand in for `tier`: those with at least its context, then the smaller ones.

    The nearest context comes first in both, so that an over-long prompt never lands on the smallest window.
    """
    others = [other for other in tiers if other.name != tier.name]
    larger = sorted((o for o in others if o.context >= tier.context), key=lambda o: o.context)
    smaller = sorted((o for o in others if o.context < tier.context), key=lambda o: -o.context)
    return [o.name for o in larger], [o.name for o in smaller]


def _deployment(group: str, tier: Tier) -> dict[str, Any]:
    return {
        "model_name": group,
        "litellm_params": {
            "model": f"openai/{tier.name}",
            "api_base": f"http://127.0.0.1:{tier.port}/v1",
            "api_key": "os.environ/MLXQ_TIER_KEY",
            "use_chat_completions_api": True,
            "keepalive_seconds": 10,
        },
        "model_info": {
            "id": f"{tier.name}@local" + ("" if group == tier.name else f"/{group}"),
            "mode": "chat",
            "max_input_tokens": tier.context,
            # Without a price LiteLLM 1.106.2 searches its whole price list for one, twice a request.
            "input_cost_per_token": 0.0,
            "output_cost_per_token": 0.0,
            "disable_background_health_check": True,
        },
    }


def _cloud(model: str) -> dict[str, Any]:
    return {
        "model_name": CLOUD,
        "litellm_params": {
            # LiteLLM's OpenAI client and not its OpenRouter one: all that leaves passes the same door.
            "model": f"openai/{model}",
            "api_base": "os.environ/MLXQ_CLOUD_URL",
            "api_key": "os.environ/OPENROUTER_API_KEY",
            "use_chat_completions_api": True,
            "timeout": 120,
            "stream_timeout": 30,
        },
        "model_info": {"id": f"{CLOUD}@openrouter", "mode": "chat", "disable_background_health_check": True},
    }


def _routing(groups: Mapping[str, Tier], tiers: Sequence[Tier], *, cloud: bool) -> dict[str, Any]:
    last = [CLOUD] if cloud else []
    general: list[dict[str, list[str]]] = []
    overflow: list[dict[str, list[str]]] = []
    for group, tier in groups.items():
        larger, smaller = successors(tier, tiers)
        general.append({group: larger + smaller + last})
        overflow.append({group: larger + last})
    # LiteLLM looks a fallback up by the name asked for, which a pattern never equals.
    larger, smaller = successors(tiers[0], tiers)
    general.append({"*": [tiers[0].name, *larger, *smaller, *last]})
    return {
        "num_retries": 0,
        "max_fallbacks": len(tiers) + len(last),
        "allowed_fails": 1,
        "cooldown_time": COOLDOWN_SECONDS,
        "timeout": ANSWER_SECONDS,
        "stream_timeout": STREAM_SECONDS,
        "routing_strategy": "simple-shuffle",
        "fallbacks": [chain for chain in general if next(iter(chain.values()))],
        "context_window_fallbacks": [chain for chain in overflow if next(iter(chain.values()))],
    }
