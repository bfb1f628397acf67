"""Write what the gateway reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from state import secrets, settings, stack
from state.errors import NotSetUp
from state.paths import Home
from state.stack import Tier
from tasks.plan import gateway
from tasks.queue import Context, job
from tasks.supervision import candidate


@job("configure")
def configure(context: Context) -> dict[str, Any]:
    """Make the keys that are missing and write gateway.yaml for the stack; the same stack gives the same bytes.

    While a gateway runs, a change is proven beside it first; one that fails there changes nothing.
    Gives {"path", "changed"}. Raises NotSetUp without a stack, GatewayFailed.
    """
    import yaml

    tiers = stack.tiers(context.db)
    if not tiers:
        raise NotSetUp("There is no stack to write a configuration for.", hint="mlxq setup")
    secrets.ensure(context.home.secrets)
    path = context.home.gateway_config
    text = yaml.safe_dump(wanted(context.home, tiers), sort_keys=False)
    changed = not path.exists() or path.read_text() != text
    if changed:
        draft = path.with_suffix(".new.yaml")
        settings.write_private(draft, text)
        if candidate.needed(context):
            candidate.start_candidate(context, draft, tiers)
        draft.replace(path)
    return {"path": str(path), "changed": changed}


def wanted(home: Home, tiers: Sequence[Tier]) -> dict[str, Any]:
    """Return gateway.yaml's content for these tiers and the settings as they are. Raises UsageProblem."""
    found = settings.load(home)
    cloud_model: str | None = found["openrouter-model"] if found["openrouter-key"] else None
    return gateway.configuration(
        tiers,
        cloud_model=cloud_model,
        aliases=gateway.aliases(found["aliases"], tiers),
        allowed_origins=found["allowed-origins"],
    )
