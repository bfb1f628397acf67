"""Write what the gateway reads."""

from __future__ import annotations

from typing import Any

from state import secrets, settings, stack
from tasks.queue import Context, job
from tasks.supervision import candidate, gateway_config


@job("configure")
def configure(context: Context) -> dict[str, Any]:
    """Make the keys that are missing and write gateway.yaml for the stack; the same stack gives the same bytes.

    While a gateway runs, a change is proven beside it first; one that fails there changes nothing.
    Returns {"path", "changed"}. Raises NotSetUp without a stack, GatewayFailed.
    """
    home, tiers = context.home, stack.require(context.db)
    secrets.ensure(home.secrets)
    path, text = home.gateway_config, gateway_config.wanted_text(context.db, home, tiers)
    changed = not gateway_config.is_current(home, text)
    if changed:
        draft = path.with_suffix(".new.yaml")
        settings.write_private(draft, text)
        if candidate.needed(context):
            candidate.start_candidate(context, draft, tiers)
        draft.replace(path)
    gateway_config.remove_old(home)
    return {"path": str(path), "changed": changed}
