"""Look at this machine, and at what it can reach."""

from __future__ import annotations

from typing import Any

from catalog.engines import entries
from state import facts
from tasks.engines import install, installed
from tasks.queue import Context, job
from tasks.system import hardware
from tasks.weights import hub

HUB_WAIT_S = 3.0


@job("detect")
def detect(context: Context) -> dict[str, Any]:
    """Find chip, memory and speed of this machine, and whether a model Hub and the package index answer; keep all.

    Returns {"machine": the row of catalog.machine.Machine, "hub": whether the Hub answered within 3 s, "index": whether
    the package index did and has each engine that is not here; False where none is missing}.
    """
    context.report("looking at the machine")
    machine = hardware.detect().as_row()
    facts.put(context.db, "machine", machine)
    context.report("asking for the Hub")
    reachable = hub.hub_reachable(HUB_WAIT_S)
    facts.put(context.db, "hub", {"reachable": reachable})
    index = _has_engines(context)
    facts.put(context.db, "index", {"reachable": index})
    return {"machine": machine, "hub": reachable, "index": index}


def _has_engines(context: Context) -> bool:
    """Return whether the package index has the engines that are not here, in the versions that mlxq installs."""
    present = {installation.engine for installation in installed.used(context.db, context.home)}
    missing = entries().keys() - present
    if missing:
        context.report("asking for the package index")
    return bool(missing) and all(install.index_has(name, HUB_WAIT_S) for name in missing)
