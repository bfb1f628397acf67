"""The job that downloads a model because a request asks for it, where the setting pull-on-demand allows that."""

from __future__ import annotations

from typing import Any

from tasks.on_demand import inventory, requests
from tasks.pull import pull
from tasks.queue import Context, job
from tasks.weights import client


@job("pull_on_demand")
def pull_on_demand(context: Context, model: str) -> dict[str, Any]:
    """Download a model that is not on this disk, up to the size that the setting allows, and make it known.

    `model`: a catalog id or a repo of the Hub. Returns what `pull` returns. Raises NotFound, DoesNotFit for one that is
    larger, and what `pull` raises.
    """
    source, size = _wanted(context, model)
    requests.require_small(context.home, model, size)
    result: dict[str, Any] = pull(context, source)
    inventory.refresh(context.db, context.home)
    return result


def _wanted(context: Context, model: str) -> tuple[str, int]:
    """Return the source of a model, and its bytes. Raises NotFound, and as the Hub does."""
    if quant := requests.quant_named(context.home, model):
        return quant.source, quant.bytes
    plan = client.plan_download(f"hub:{model}", cancelled=context.cancelled)
    return f"hub:{model}", sum(file.size for file in plan.files)
