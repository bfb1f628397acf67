"""What the gateway is told: its configuration, its environment, its command line."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from catalog.engines import FALLBACK
from state.errors import UsageProblem
from state.stack import Engine, Tier, engines_of, served_by
from tasks.plan.environment import KEPT, marker

SERVICE = "gateway"
LOOPBACK = "127.0.0.1"

LOG_LEVEL = "MLXQ_LOG_LEVEL"
"""Names how much the gateway logs: WARNING without it; DEBUG counts, by name, the fields that it drops."""

CHECK = "x-mlxq-check"
"""The header of requests by which mlxq itself tests a tier: with the master key, they are in no count."""

BATCH = "x-mlxq-batch"
"""The header of a batch's lines, sent with the master key: the name of the key that owns the batch, and BATCH_CLOUD
where the cloud may answer. The owner's tiers and usage count; its key itself is in no job and no file."""
BATCH_CLOUD = "cloud"

APP = "x-mlxq-app"
"""The header of what a front asks for an app, by its node's key or, on its own machine, the master key: words of
BACKGROUND and NO_STORE, where the app's key is one of these."""
BACKGROUND, NO_STORE = "background", "no-store"

TRIAL = "MLXQ_TRIAL_PORT"
"""Names the port on which a gateway is proven beside the one that serves, before it takes that one's place."""
TRIAL_KEY = "MLXQ_TRIAL_KEY"
"""Names the key that a gateway takes as long as it is proven: another program on that port learns no other."""

ALIASES: Mapping[str, str] = {
    "default": "standard",
    "gpt-4o": "standard",
    "gpt-4o-mini": "fast",
    "claude-*": "standard",
    "claude-*haiku*": "fast",
    "fast": "standard",
    "longctx": "standard",
}
"""A tier of the stack has its own name before any of these: fast and longctx lead to standard where they share its
engine. The others are names that clients send unasked, and the tier that answers. Of two patterns the longer counts.
"""

CLOUD = "cloud"
"""The group of last resort. It exists only when the user gave a key for it."""

OPENROUTER = "https://openrouter.ai/api/v1"

ANSWER_SECONDS = 600
"""Longest answer that is not streamed, in seconds, unless the tier's own limit is longer."""

LEAVE_SECONDS = ANSWER_SECONDS + 10
"""How long a gateway that was replaced may take for the answers in flight."""

_SECRETS = ("LITELLM_MASTER_KEY", "MLXQ_TIER_KEY", "OPENROUTER_API_KEY")

LITELLM_QUIET = {
    # For LiteLLM, where the cloud is asked: without these it asks raw.githubusercontent.com as it is imported,
    # loads a stray .env of the working folder, and logs what users wrote.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "CRITICAL",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
}


def configuration(
    tiers: Sequence[Tier],
    *,
    cloud_model: str | None = None,
    aliases: Mapping[str, str] = ALIASES,
    allowed_origins: Sequence[str] = (),
    remote_images: bool = False,
    programs: Mapping[str, str] | None = None,
    templates: Mapping[str, Mapping[str, Any]] | None = None,
    retrieval: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the content of gateway.yaml for these tiers.

    `programs`: what each engine runs; vllm-mlx where it does not say. `templates`: what the gateway must know of the
    chat template of each engine's model, as tasks.engines.serving.templates has it. `retrieval`: engines for embeddings
    and ranking, as tasks.plan.retrieval.configuration gives them.
    `cloud_model` is an OpenRouter model id and adds the last resort; None leaves no way out of the machine.
    An alias whose tier is not in the stack leads to the first tier. Raises ValueError without a tier.
    """
    if not tiers:
        raise ValueError("a gateway needs at least one tier")
    programs, templates = programs or {}, templates or {}
    document: dict[str, Any] = {
        "engines": {
            engine.name: engine_section(engine, programs.get(engine.name, FALLBACK), templates.get(engine.name))
            for engine in engines_of(tiers)
        },
        "tiers": {tier.name: _tier(tier, tiers) for tier in tiers},
        "names": _names(aliases, tiers),
    }
    optional = {
        "retrieval": {purpose: dict(row) for purpose, row in (retrieval or {}).items()},
        "cloud_model": cloud_model,
        "allowed_origins": list(allowed_origins),
        "remote_images": remote_images,
    }
    return document | {name: value for name, value in optional.items() if value}


def _names(aliases: Mapping[str, str], tiers: Sequence[Tier]) -> dict[str, str]:
    """Return the tier behind each alias; one whose tier is not in the stack leads to the first."""
    tier_names = {tier.name for tier in tiers}
    return {
        alias: name if name in tier_names else tiers[0].name
        for alias, name in aliases.items()
        if alias not in tier_names
    }


def engine_section(engine: Engine, program: str, template: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the gateway must know of an engine of chats."""
    document = {
        "port": engine.port,
        "context": engine.context,
        "vision": engine.vision,
        "program": program,
        "answer_timeout_s": engine.answer_timeout_s,
    }
    return document | ({"template": dict(template)} if template else {})


def _tier(tier: Tier, tiers: Sequence[Tier]) -> dict[str, Any]:
    """Return one tier. Only one that shares its engine is named as stopped: the engine of another says it by itself."""
    document: dict[str, Any] = {"engine": tier.engine.name}
    defaults = {name: value for name, value in asdict(tier.defaults).items() if value is not None}
    if "max_tokens" in defaults:
        defaults["max_tokens"] = tier.max_tokens
    if defaults:
        document["defaults"] = defaults
    if tier.desired == "down" and len(served_by(tiers, tier.engine.name)) > 1:
        document["stopped"] = True
    return document


def aliases(own: Mapping[str, str], tiers: Sequence[Tier], engines: Sequence[Engine] = ()) -> dict[str, str]:
    """Return our aliases and, over them, the user's that lead to tiers.

    `engines`: those for embeddings and ranking, to which aliases may lead too. Raises UsageProblem for one that leads
    nowhere or is taken.
    """
    names = [*(tier.name for tier in tiers), *(engine.name for engine in engines)]
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
    beside = {engine.name for engine in engines}
    return {**ALIASES, **{alias: tier for alias, tier in own.items() if tier not in beside}}


def resolve(names: Mapping[str, str], model: str) -> str | None:
    """Return what a name leads to, or None; `names` are exact, or patterns with a `*`. The longer pattern counts."""
    if model in names:
        return names[model]
    fitting = [name for name in names if "*" in name and fnmatch.fnmatchcase(model, name)]
    return names[max(fitting, key=len)] if fitting else None


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
    """Return the whole environment of the gateway.

    `secrets` holds what secrets.env holds, and OPENROUTER_API_KEY when the user gave one; `base` is the
    worker's environment, `home` the mlxq home, `backend` one of metal, cpu, cuda, `cloud_cap_usd` what
    the last resort may cost in a day.
    """
    return {
        **{name: base[name] for name in KEPT if name in base},
        **marker(home, SERVICE, generation),
        **LITELLM_QUIET,
        "PYTHONUNBUFFERED": "1",
        "MLXQ_BACKEND": backend,
        "MLXQ_CLOUD_URL": cloud_url,
        "MLXQ_CLOUD_CAP_USD": str(cloud_cap_usd),
        **{name: secrets[name] for name in _SECRETS if name in secrets},
    }


def argv(python: str, config_path: str, port: int, *, host: str = LOOPBACK, tls: str | None = None) -> list[str]:
    """Return the gateway's command line; it holds no secret. `tls`: the folder of its certificate."""
    encrypted = ["--tls", tls] if tls else []
    return [python, "-P", "-m", "tasks.gateway", config_path, str(port), "--host", host, *encrypted]


def order(name: str, contexts: Mapping[str, int]) -> list[str]:
    """Return the tiers that may stand in for `name`: those with at least its context, then the smaller ones.

    `contexts`: tier -> tokens. The nearest context comes first in both, so that an over-long prompt never meets the
    smallest window.
    """
    own = contexts[name]
    candidates = [(context, other) for other, context in contexts.items() if other != name]
    larger = sorted((pair for pair in candidates if pair[0] >= own), key=lambda pair: pair[0])
    smaller = sorted((pair for pair in candidates if pair[0] < own), key=lambda pair: -pair[0])
    return [other for _, other in larger + smaller]
