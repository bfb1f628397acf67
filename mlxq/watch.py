"""Jobs as they go on: a live tree on a terminal, one line a step in a pipe, JSON lines for programs."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlxq import render
from mlxq.ask import View
from state.job import Job, State

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

STILL_S = 10.0
"""Without a terminal, a job that goes on is told of this often."""
WINDOW_S = 10.0
"""Rates are measured over the last seconds; an ETA is told only after as many."""
MARKS: Mapping[State, str] = {
    State.BLOCKED: "·",
    State.QUEUED: "·",
    State.RUNNING: "▸",
    State.SUCCEEDED: "✓",
    State.FAILED: "✗",
    State.CANCELLED: "-",
}
NAME_WIDTH = 36
"""A longer name pushes its own line alone to the right."""
SUBJECTS = ("service", "model", "source", "target", "folder")
"""The argument that says what a job is about."""


def view(*, as_json: bool = False) -> View:
    """Choose how jobs are shown to whoever reads."""
    if as_json:
        return JsonView()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return LiveView()
    return PlainView()


def title(job: Job) -> str:
    """Name a job as its task and what it is about, such as `start fast`."""
    about = next((str(job.args[name]) for name in SUBJECTS if job.args.get(name)), "")
    return f"{job.kind} {short(about)}".strip()


def short(source: str) -> str:
    """Give what a person calls a source: its last part, without the revision (`hub:org/name@1a2b` is `name`)."""
    return source.rpartition(":")[2].rpartition("/")[2].partition("@")[0].partition("==")[0]


def note(job: Job) -> str:
    """Say in a few words how a job is."""
    if not job.live:
        return job.error or (_took(job) if job.state is State.SUCCEEDED else str(job.state))
    if job.state is State.BLOCKED:
        return "waits for job " + ", ".join(map(str, job.needs))
    if job.state is State.QUEUED and job.error:
        return f"again in {render.span(max(0.0, job.run_at - time.time()))}: {job.error}"
    return "stopping, as asked" if job.cancel_at else job.phase or str(job.state)


def _took(job: Job) -> str:
    return render.span((job.finished_at or 0) - (job.started_at or 0))


def row(job: Job) -> dict[str, Any]:
    """Give a job as it is printed for programs."""
    return asdict(job) | {"state": str(job.state), "needs": list(job.needs)}


class JsonView:
    """One JSON document a change, on stdout."""

    def __init__(self) -> None:
        self._told: dict[int, dict[str, Any]] = {}

    def show(self, jobs: Sequence[Job]) -> None:
        """Print the jobs that changed."""
        for job in jobs:
            now = row(job)
            if self._told.get(job.id) != now:
                self._told[job.id] = now
                render.line({"job": now})

    def tell(self, text: str) -> None:
        """Say something beside the jobs."""
        render.say(text)

    def close(self) -> None:
        """Nothing to put back."""


class PlainView:
    """A line when a job begins, when it ends, and now and then between."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[State, int]] = {}
        self._at: dict[int, float] = {}

    def show(self, jobs: Sequence[Job]) -> None:
        """Print the jobs that made a step."""
        for job in jobs:
            mark = (job.state, job.attempt)
            quiet = job.state in (State.BLOCKED, State.QUEUED) and not job.error
            if not quiet and (self._told.get(job.id) != mark or self._is_still(job)):
                self._told[job.id] = mark
                self._at[job.id] = time.monotonic()
                render.say(f"{MARKS[job.state]} {title(job)}: {self._text(job)}")

    def _is_still(self, job: Job) -> bool:
        return job.state is State.RUNNING and time.monotonic() - self._at[job.id] >= STILL_S

    def _text(self, job: Job) -> str:
        done, total = amounts(job)
        return f"{note(job)} {done / total:.0%} of {amount(job, total)}" if total else note(job)

    def tell(self, text: str) -> None:
        """Say something beside the jobs."""
        render.say(text)

    def close(self) -> None:
        """Nothing to put back."""


def amounts(job: Job) -> tuple[float, float]:
    """Give what a running job has done, and of how much; (0, 0) when it does not say."""
    if job.state is not State.RUNNING:
        return 0.0, 0.0
    return float(job.progress.get("done") or 0), float(job.progress.get("total") or 0)


def amount(job: Job, count: float) -> str:
    """Give a count in the job's own unit."""
    unit = job.progress.get("unit", "")
    return render.size(count) if unit == "bytes" else f"{count:g} {unit}".strip()


def _without_unit(done: str, total: str) -> str:
    """Leave the unit out where the next word has the same one."""
    number, _, unit = done.rpartition(" ")
    return number if number and total.endswith(f" {unit}") else done


class Pace:
    """How fast a job goes, over the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()
        self._began = clock()

    def see(self, done: float) -> None:
        """Take a sample."""
        now = self._clock()
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Give units a second; 0 when nothing moves."""
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return max(0.0, last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def eta_s(self, done: float, total: float) -> float | None:
        """Give the seconds that are left; None before there is enough to go by."""
        if self._clock() - self._began < WINDOW_S or not self.rate:
            return None
        return (total - done) / self.rate


class LiveView:
    """The chain as a tree that moves, on a terminal. rich is imported here: a person waits anyway."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._paces: dict[int, Pace] = {}

    def show(self, jobs: Sequence[Job]) -> None:
        """Draw the jobs anew."""
        if self._live is None:
            self._live = _start_live()
        self._live.update(self._tree(jobs), refresh=True)

    def tell(self, text: str) -> None:
        """Say something above the moving picture."""
        if self._live is None:
            render.say(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Keep the last picture and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tree(self, jobs: Sequence[Job]) -> Group:
        from rich.console import Group

        depth = depths(jobs)
        names = {job.id: f"{'  ' * depth[job.id]}{MARKS[job.state]} {title(job)}" for job in jobs}
        widest = min(NAME_WIDTH, max((len(name) for name in names.values()), default=0))
        return Group(*(self._line(job, names[job.id].ljust(widest)) for job in jobs))

    def _line(self, job: Job, name: str) -> RenderableType:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{job.id:>4} ", style="bright_black")
        text.append(f"{name}  ", style=render.COLOURS[job.state])
        text.append(self._note(job), style="red" if job.state is State.FAILED else "bright_black")
        return text

    def _note(self, job: Job) -> str:
        done, total = amounts(job)
        if not total:
            return f"{note(job)}{self._elapsed(job)}"
        pace = self._paces.setdefault(job.id, Pace())
        pace.see(done)
        eta = pace.eta_s(done, total)
        parts = [
            f"{bar(done / total)} {done / total:4.0%}",
            f"{_without_unit(amount(job, done), amount(job, total))} of {amount(job, total)}",
            f"{amount(job, pace.rate)}/s" if pace.rate and eta is not None else "",
            f"{render.span(eta)} left" if eta is not None else "",
            note(job),
        ]
        return "  ".join(part for part in parts if part)

    def _elapsed(self, job: Job) -> str:
        """Give how long a running job without figures has been at it."""
        if job.state is not State.RUNNING or not job.started_at:
            return ""
        return f"  {int(time.time() - job.started_at)}s"


def _start_live() -> Live:
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False, vertical_overflow="visible")
    live.start()
    return live


def bar(share: float, width: int = 12) -> str:
    """Draw a share from 0 to 1."""
    full = round(min(1.0, max(0.0, share)) * width)
    return "█" * full + "░" * (width - full)


def depths(jobs: Sequence[Job]) -> dict[int, int]:
    """Give how deep each job stands in the tree of what needs what; needs come before what needs them."""
    depth: dict[int, int] = {}
    for job in jobs:
        depth[job.id] = max((depth[need] + 1 for need in job.needs if need in depth), default=0)
    return depth
