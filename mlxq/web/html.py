"""Render a snapshot as HTML. Every value is escaped; there are no inline styles or scripts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from catalog import units
from mlxq import job_view, prompt_reuse, render
from mlxq.web import chart, labels
from mlxq.web.labels import Shape
from mlxq.web.snapshot import Snapshot
from state.job import Job, JobState
from state.metrics import usage

HERE = Path(__file__).parent
STATIC = HERE / "static"
SECTIONS = ("head", "tiers", "now", "jobs", "batches", "nodes", "why", "use", "bench")
"""The parts that are updated, by the id of their element; the rest of the page is static."""
FIRST = '<div id="head">'
"""Where the first of them begins in templates/page.html."""
JOB_SHAPES: Mapping[JobState, Shape] = {
    JobState.BLOCKED: Shape.RING,
    JobState.QUEUED: Shape.RING,
    JobState.RUNNING: Shape.HALF,
    JobState.SUCCEEDED: Shape.FULL,
    JobState.FAILED: Shape.CROSS,
    JobState.CANCELLED: Shape.RING,
}


class HtmlRenderer:
    """Renders templates, which are compiled once."""

    def __init__(self) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
        )
        self._templates.filters.update(
            size=units.memory,
            span=span,
            number=number,
            count=count,
            axis=axis,
            percent=percent,
            title=job_view.title,
            note=job_view.note,
        )
        tools: dict[str, Any] = {
            "mark": mark,
            "moment": moment,
            "tick": tick,
            "hour": chart.RANGES["hour"],
            "minutes": chart.minutes,
            "draw": chart.draw,
            "actions": labels.actions,
            "shape_of": JOB_SHAPES.__getitem__,
            "share": share,
            "pace": pace,
            "cached_share": usage.cached_share,
            "rereads": prompt_reuse.REREADS,
            "static": self.static,
        }
        self._templates.globals.update(tools)

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in STATIC.iterdir()}

    def static(self, name: str) -> str:
        """Return the URL of a static file; it contains the digest of the content."""
        return f"/static/{name}?{self._digests[name]}"

    def sections(self, snapshot: Snapshot) -> Mapping[str, str]:
        """Render every section."""
        return {name: self.part(name, seen=snapshot) for name in SECTIONS}

    def beginning(self, token: str) -> str:
        """Return the page up to its first section."""
        return self.part("page", sections=dict.fromkeys(SECTIONS, ""), token=token).partition(FIRST)[0]

    def part(self, template: str, /, **values: Any) -> str:
        """Render one template."""
        return self._templates.get_template(f"{template}.html").render(**values)


def mark(shape: Shape) -> Markup:
    """Return the symbol of a state; hidden from screen readers, which read the word next to it."""
    return Markup('<svg class="mark {0}" aria-hidden="true"><use href="#{0}"/></svg>').format(str(shape))


def moment(at: float | None, style: str = "clock") -> Markup:
    """Return a time as HTML; page.js keeps it current.

    `style`: clock (14:03:20), ago (3m ago), since (3m12s, growing) or until (12s, shrinking).
    """
    if at is None:
        return Markup("")
    written = time.strftime("%H:%M:%S", time.localtime(at))
    full = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at))
    return Markup('<time datetime="{}" data-{}="{:.0f}">{}</time>').format(full, style, at, written)


def tick(at: int, style: str) -> Markup:
    """Return the time below a chart as HTML; page.js writes it in the reader's time zone. `style`: time or day."""
    written = time.strftime("%H:%M" if style == "time" else "%a %d", time.localtime(at))
    return Markup('<time data-{}="{}">{}</time>').format(style, at, written)


NONE = "–"  # noqa: RUF001 (a dash is what stands for no figure)


def span(seconds: float | None) -> str:
    """Format a duration; a dash for None."""
    return NONE if seconds is None else render.span(seconds)


def number(value: float | None) -> str:
    """Format a number with two significant digits or more: 7.2, 41, 1,250; a dash for None."""
    if value is None:
        return NONE
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"  # noqa: PLR2004 (a second digit is enough from there)


def axis(value: float) -> str:
    """Format a round number of a scale: 0.5, 40, 2000."""
    return f"{value:.0f}" if value >= 10 else f"{value:g}"  # noqa: PLR2004 (halves of round numbers are whole there)


def count(tokens: int) -> str:
    """Format a number of tokens: 950, 41.2k, 3.7M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if tokens >= size:
            return f"{tokens / size:.1f}{unit}"
    return str(tokens)


def percent(share: float | None) -> str:
    """Format a share, 0 to 1; a dash for None."""
    return prompt_reuse.percent(share) or NONE


def pace(job: Job) -> str:
    """Return the rate of a running job and what is left, such as "2.1 requests/s, 4m left"; empty if it has none."""
    rate, eta_s = job.progress.get("rate"), job.progress.get("eta_s")
    if job.state is not JobState.RUNNING or rate is None or eta_s is None:
        return ""
    return f"{job_view.amount(job, rate)}/s, {render.span(eta_s)} left"


def share(job: Job) -> tuple[float, str] | None:
    """Return the progress of a job, 0 to 1, and its amounts as text; None if it does not report progress."""
    done, total = job_view.amounts(job)
    if not total:
        return None
    return min(1.0, done / total), f"{job_view.amount(job, done)} of {job_view.amount(job, total)}"


def event(name: str, text: str) -> str:
    """Encode one server-sent event; JSON escapes line breaks."""
    return f"event: {name}\ndata: {json.dumps(text)}\n\n"
