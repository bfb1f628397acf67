"""The charts of services over a longer time, read from the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxq.web import chart
from mlxq.web.chart import Chart, Range
from state import service, stack
from state.db import Database
from state.metrics import sample


@dataclass(frozen=True)
class Plot:
    """One chart with what it shows."""

    key: str
    label: str
    unit: str
    chart: Chart

    @property
    def idle(self) -> str:
        """What stands beside it while no value is pointed at."""
        return f"peak {self.chart.peak:.3g}" if self.chart.peak else "none"


def of_engines(db: Database, span: Range, *, shared: bool) -> list[Plot]:
    """Return the tokens/s of every engine; `shared`: all charts reach up to the same value."""
    now, tiers = db.now(), stack.tiers(db)
    names = [row.name for row in service.listing(db) if row.kind == "engine"]
    values = {
        name: chart.series(
            sample.slots(db, name, span.since(now), span.slot_s), span, now, lambda slot: slot.tokens_per_s
        )
        for name in names
    }
    peak = max((value or 0.0 for row in values.values() for value in row), default=0.0)
    top = chart.scale(peak) if shared else None
    titles = {name: ", ".join(tier.name for tier in stack.served_by(tiers, name)) or name for name in names}
    return [Plot(name, titles[name], "tokens/s", chart.draw(row, top)) for name, row in values.items()]


def of_service(db: Database, name: str, span: Range) -> Sequence[Plot]:
    """Return the history of one service: speed, time to the first token, memory."""
    now = db.now()
    slots = sample.slots(db, name, span.since(now), span.slot_s)
    rates = chart.series(slots, span, now, lambda slot: slot.tokens_per_s)
    waits = chart.series(slots, span, now, lambda slot: slot.ttft_s)
    sizes = chart.series(slots, span, now, lambda slot: slot.memory_bytes and slot.memory_bytes / 2**30)
    return [
        Plot("rate", "Output", "tokens/s", chart.draw(rates)),
        Plot("ttft", "TTFT", "seconds to the first token", chart.draw(waits)),
        Plot("memory", "Memory", "GB of memory", chart.draw(sizes)),
    ]
