"""Everything about one service: its memory part by part, its speeds predicted and measured, its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catalog.fit import Memory, memory
from catalog.machine import from_row
from catalog.model import Model
from catalog.select import SHOWN_CONTEXT
from catalog.speed import Speed, predict
from mlxq.web import labels, snapshot
from mlxq.web.engine_status import Engines
from mlxq.web.labels import Entry
from mlxq.web.snapshot import ServiceCard
from state import event, facts
from state.db import Database
from state.errors import NotFound
from state.metrics import bench, sample
from state.metrics.bench import Bench
from state.metrics.sample import InUse
from state.stack import Engine
from tasks import recommend

WEEK_S = 7 * 86_400
MOST_EVENTS = 40


@dataclass(frozen=True)
class ServicePage:
    """One service as its page shows it."""

    at: float
    card: ServiceCard
    parts: Memory | None
    """The planned memory of an engine; None where its model is in no catalog."""
    predicted: Speed | None
    """What the catalog expects of its model here after a prompt of 8K tokens, without benchmarks of this machine."""
    benches: Sequence[Bench]
    """Saved on this machine, the newest first."""
    in_use: InUse
    """What its requests saw in the last seven days."""
    story: Sequence[Entry]

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """The parts of its planned memory with their bytes; empty where they are not known."""
        if self.parts is None or self.card.engine is None:
            return []
        parts = [("weights", self.parts.weights), ("KV cache", self.parts.kv), ("reading a prompt", self.parts.prefill)]
        return [*parts, ("process", self.parts.overhead), ("prompts kept", self.card.engine.cache_bytes)]


def read(db: Database, name: str, engines: Engines) -> ServicePage:
    """Return the page of one service. Raises NotFound."""
    now = snapshot.take(db, engines)
    card = next((card for card in [*now.cards, *now.others] if card.service.name == name), None)
    if card is None:
        raise NotFound(f"There is no service {name!r}.", hint="mlxq status")
    model = recommend.all_models(db.home).get(card.engine.model) if card.engine else None
    return ServicePage(
        at=now.at,
        card=card,
        parts=_parts(model, card.engine),
        predicted=_predicted(db, model, card.engine),
        benches=_benches(db, card.engine),
        in_use=sample.in_use(db, name, now.at - WEEK_S),
        story=labels.timeline(event.of_service(db, name, limit=MOST_EVENTS)),
    )


def _parts(model: Model | None, engine: Engine | None) -> Memory | None:
    if model is None or engine is None or engine.quant not in model.quants:
        return None
    return memory(model, engine.quant, engine.context, engine.concurrency, engine.prefill_step)


def _predicted(db: Database, model: Model | None, engine: Engine | None) -> Speed | None:
    row = facts.get(db, "machine")
    if model is None or engine is None or engine.quant not in model.quants or "gpu_cores" not in row:
        return None
    return predict(from_row(row), model, engine.quant, min(SHOWN_CONTEXT, engine.context))


def _benches(db: Database, engine: Engine | None) -> list[Bench]:
    if engine is None:
        return []
    rows = bench.history(db, engine.model, str(facts.get(db, "machine").get("chip", "")))
    return [row for row in reversed(rows) if row.quant == engine.quant]
