"""Look at this machine, and at what it can reach."""

from __future__ import annotations

from typing import Any

from state import facts
from tasks.queue import Context, job
from tasks.system import hardware
from tasks.weights import hub

HUB_WAIT_S = 3.0


@job("detect")
def detect(context: Context) -> dict[str, Any]:
    """Find chip, memory and speed of this machine and whether a model Hub answers; keep both.

    Returns {"machine": the row of catalog.machine.Machine, "hub": whether the Hub answered within 3 s}.
    """
    context.report("looking at the machine")
    machine = hardware.detect().as_row()
    facts.put(context.db, "machine", machine)
    context.report("asking for the Hub")
    reachable = hub.hub_reachable(HUB_WAIT_S)
    facts.put(context.db, "hub", {"reachable": reachable})
    return {"machine": machine, "hub": reachable}
