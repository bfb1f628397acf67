"""What `mlxq top` shows, drawn with rich."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from catalog import units
from mlxq import job_view, prompt_reuse, render
from mlxq.terminal import printable
from mlxq.top import columns as tables
from mlxq.top.columns import Column
from mlxq.web.engine_status import EngineView
from mlxq.web.labels import Shape, StatusLabel
from mlxq.web.snapshot import ServiceCard, Snapshot
from state import service
from state.metrics.sample import MINUTE_S, Sample
from tasks.plan.request_stats import EngineRequest

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

    from mlxq.web.nodes import NodeView

MARKS = {Shape.FULL: "●", Shape.HALF: "◐", Shape.RING: "○", Shape.WARN: "▲", Shape.CROSS: "✗"}
COLORS = {
    Shape.FULL: "green",
    Shape.HALF: "cyan",
    Shape.RING: "bright_black",
    Shape.WARN: "yellow",
    Shape.CROSS: "red",
}
BLOCKS = " ▁▂▃▄▅▆▇█"
MINUTES = 30
"""Shown in the small charts."""
WIDE = 110
"""Columns from which the bar of the memory is long."""
STATE_LEAST = 28
"""Characters to which a state may be cut: a restart and its seconds are whole, and all of it is in `mlxq status`."""
TIER_COLUMNS = (
    Column("SERVICE", 0, "left", least=10),
    Column("STATE", 0, "left", least=STATE_LEAST),
    *(Column(head, rank) for head, rank in (("RUN", 1), ("WAIT", 6), ("TOK/S", 2), ("TTFT", 5))),
    *(Column(head, rank) for head, rank in (("UP", 4), ("MEMORY", 3), ("RESTARTS", 7), ("CACHED", 8))),
    Column(f"LAST {MINUTES} MIN", 9, "left"),
)
REQUEST_COLUMNS = (
    Column("TIER", 0, "left", least=10),
    Column("PHASE", 1, "left"),
    *(Column(head, rank) for head, rank in (("PROMPT", 4), ("CACHED", 6), ("ANSWER", 3))),
    Column("DONE", 7, "left"),
    *(Column(head, rank) for head, rank in (("TOK/S", 2), ("TIME", 5))),
)
NODE_COLUMNS = (
    Column("NODE", 0, "left", least=10),
    Column("STATE", 0, "left"),
    Column("RUN", 1),
    Column("SERVES", 2, "left", least=8),
    Column("VERSION", 4, "left"),
    Column("PROBLEM", 3, "left", least=20),
)
MOST_EVENTS = 6
MOST_JOBS = 10


def draw(snapshot: Snapshot, columns: int, selected: str | None = None) -> Group:
    """Draw everything in a width of `columns`.

    `selected`: the service whose row is marked.
    """
    from rich.console import Group
    from rich.text import Text

    head = _label(snapshot.label)
    head.append(f"   {snapshot.endpoint}", style="bright_black")
    tiers = _tiers([*snapshot.cards, *snapshot.others], snapshot.at, columns, selected)
    parts: list[RenderableType] = [head, _memory(snapshot, 24 if columns >= WIDE else 16), Text(), *tiers]
    for title, lines in (
        ("Nodes", _nodes(snapshot.nodes, columns)),
        ("Requests", _requests(snapshot, columns)),
        ("Jobs", _jobs(snapshot)),
        ("Events", _events(snapshot)),
    ):
        if lines:
            parts += [Text(f"\n{title}", style="bold"), *lines]
    return Group(*parts)


def _label(label: StatusLabel) -> Text:
    from rich.text import Text

    text = Text(f"{MARKS[label.shape]} {label.word}", style=COLORS[label.shape], no_wrap=True, overflow="ellipsis")
    if label.until:
        text.append(f" in {render.span(max(0.0, label.until - time.time()))}")
    if label.reason:
        text.append(printable(f"  {label.reason}"), style="default")
    return text


def _memory(snapshot: Snapshot, width: int) -> Text:
    from rich.text import Text

    memory = snapshot.memory
    if not memory.total:
        return Text(f"worker {snapshot.worker}", style="bright_black")
    text = Text(f"{job_view.bar(memory.used / memory.total, width)} ", no_wrap=True, overflow="ellipsis")
    text.append(f"{units.memory(memory.used)} of {units.memory(memory.total)}, budget {units.memory(memory.budget)}")
    text.append(f", swap {units.memory(memory.swap)}   worker {snapshot.worker}", style="bright_black")
    return text


def _tiers(cards: Sequence[ServiceCard], now: float, columns: int, selected: str | None) -> list[Text]:
    rows = [[*_row(card, now), prompt_reuse.percent(card.reuse.share) or "-", spark(card.hour, now)] for card in cards]
    names = [card.service.name for card in cards]
    return tables.table(TIER_COLUMNS, rows, columns, names.index(selected) if selected in names else None)


def _row(card: ServiceCard, now: float) -> list[Text | str]:
    """Return one service's cells, in the order of the columns; those of wide terminals are apart."""
    row = card.service
    up = now - row.ready_at if row.ready_at and row.state in service.SERVING else None
    return [
        card.title,
        _label(StatusLabel(card.label.shape, card.label.word, until=card.label.until)),
        *_counts(card.now),
        f"{card.decode_tps:.1f}" if card.decode_tps else "-",
        render.span(card.last.ttft_s if card.last else None),
        render.span(up),
        units.memory(card.memory_bytes or None),
        str(row.restarts),
    ]


def _counts(engine: EngineView | None) -> tuple[str, str]:
    """Return how many requests run and wait."""
    return (str(engine.status.num_running), str(engine.status.num_waiting)) if engine else ("-", "-")


def spark(samples: Sequence[Sample], now: float) -> str:
    """Draw tokens/s of the last half hour, a character a minute; a minute without a sample is blank."""
    first = int(now) // MINUTE_S - MINUTES
    values = {
        sample.at // MINUTE_S - first: sample.tokens_per_s for sample in samples if sample.at // MINUTE_S >= first
    }
    top = max(values.values(), default=0.0)
    if not top:
        return ""
    return "".join(BLOCKS[_level(values.get(slot), top)] for slot in range(MINUTES))


def _level(value: float | None, top: float) -> int:
    return 0 if value is None else 1 + round(value / top * (len(BLOCKS) - 2))


def _nodes(nodes: Sequence[NodeView], columns: int) -> list[Text]:
    """Draw the other nodes of the fleet, under column heads."""
    rows = [
        [
            *(view.node.name, _label(StatusLabel(view.shape, view.word)), str(view.node.running)),
            *(" ".join(view.tiers) or "-", view.node.version or view.node.kind, printable(view.problem or "-")),
        ]
        for view in nodes
    ]
    return tables.table(NODE_COLUMNS, rows, columns) if rows else []


def _requests(snapshot: Snapshot, columns: int) -> list[Text]:
    """Draw the requests of clients, under column heads; a tier's own tests are not among them."""
    rows = [
        [
            *(tier, request.phase, f"{request.prompt_tokens:,}", _count(request.cached_tokens)),
            *(f"{request.completion_tokens:,}", job_view.bar(request.progress, 8)),
            *(_speed(request), render.span(request.elapsed_s)),
        ]
        for tier, request in snapshot.requests
    ]
    return tables.table(REQUEST_COLUMNS, rows, columns) if rows else []


def _speed(request: EngineRequest) -> str:
    """Return tokens/s; none for a request that makes no tokens yet."""
    return f"{request.decode_tps:.1f}" if request.decode_tps else "-"


def _count(tokens: int) -> str:
    return f"{tokens:,}" if tokens else "-"


def _jobs(snapshot: Snapshot) -> list[Text]:
    from rich.text import Text

    lines: list[Text] = []
    for job in [*snapshot.attention, *(job for chain in snapshot.chains for job in chain if job.live)][:MOST_JOBS]:
        done, total = job_view.amounts(job)
        progress = f"  {job_view.bar(done / total, 12)} {done / total:.0%}" if total else ""
        style = "red" if job.error_code else ""
        line = f"{job_view.MARKS[job.state]} {job.id:>4} {job_view.title(job)}{progress}  {job_view.note(job)}"
        lines.append(Text(printable(line), style=style, no_wrap=True, overflow="ellipsis"))
    return lines


def _events(snapshot: Snapshot) -> list[Text]:
    from rich.text import Text

    lines: list[Text] = []
    for entry in snapshot.story[:MOST_EVENTS]:
        text = Text(f"{render.clock(entry.at)[11:]}  ", no_wrap=True, overflow="ellipsis")
        text.append(f"{MARKS[entry.shape]} {entry.service} {entry.word}", style=COLORS[entry.shape])
        text.append(printable(f"  {entry.text}"))
        lines.append(text)
    return lines
