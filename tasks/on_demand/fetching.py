"""The job that downloads a model because a request asks for it, where the setting pull-on-demand allows that."""

from __future__ import annotations

from typing import Any

from catalog import units
from catalog.problems import UnknownModel
from state import settings
from state.errors import DoesNotFit, NotFound
from tasks import recommend
from tasks.on_demand import inventory
from tasks.pull import pull
from tasks.queue import Context, job
from tasks.weights import client
from tasks.weights import source as sources

GB = 10**9


@job("pull_on_demand")
def pull_on_demand(context: Context, model: str) -> dict[str, Any]:
    """Download a model that is not on this disk, up to the size that the setting allows, and make it known.

    `model`: a catalog id or a repo of the Hub. Returns what `pull` returns. Raises NotFound, DoesNotFit for one that is
    larger, and what `pull` raises.
    """
    source, size = _wanted(context, model)
    limit = settings.load(context.home)["pull-on-demand"]
    if limit == settings.OFF:
        raise NotFound(f"There is no model {model!r} on this disk.", hint=f"mlxq pull {model}")
    if size > limit * GB:
        raise DoesNotFit(
            f"{model} has {units.files(size)}, and pull-on-demand allows {limit} GB.",
            done="Nothing was downloaded.",
            hint=f"mlxq pull {model}",
        )
    result: dict[str, Any] = pull(context, source)
    inventory.refresh(context.db, context.home)
    return result


def _wanted(context: Context, model: str) -> tuple[str, int]:
    """Return the source of a model, and its bytes. Raises NotFound, and as the Hub does."""
    preferred: str = settings.load(context.home)["default-quant"]
    try:
        quant = recommend.quant_named(model, recommend.all_models(context.home), preferred)
    except UnknownModel as problem:
        return _of_repo(context, model, problem)
    return quant.source, quant.bytes


def _of_repo(context: Context, name: str, problem: UnknownModel) -> tuple[str, int]:
    if not sources.is_repo(name):
        raise NotFound(str(problem), hint="mlxq models --catalog") from problem
    plan = client.plan_download(f"hub:{name}", cancelled=context.cancelled)
    return f"hub:{name}", sum(file.size for file in plan.files)
