"""The progress of jobs: a live tree on a terminal, one line a step in a pipe, JSON lines for programs."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from catalog import units
from mlxq import render
from mlxq.jobs_client import View
from mlxq.terminal import printable, raw
from state.job import Job, JobState

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

STEPS = 10
"""Without a terminal, how many lines a job with figures gets between its start and its end."""
WINDOW_S = 10.0
"""Rates are measured over the last seconds; a remaining time is shown only after as many."""
MARKS: Mapping[JobState, str] = {
    JobState.BLOCKED: "·",
    JobState.QUEUED: "·",
    JobState.RUNNING: "▸",
    JobState.SUCCEEDED: "✓",
    JobState.FAILED: "✗",
    JobState.CANCELLED: "-",
}
NAME_WIDTH = 36
"""A longer name pushes its own line alone to the right."""
WIDE = 100
"""Columns from which every pull has a bar; below, the total alone has one."""
SMALL_FILE = 10_000_000
"""Bytes; a smaller file is done before its name is read."""
SUBJECTS = ("service", "model", "source", "target", "folder", "name", "batch", "engine", "tier", "purpose", "node")
"""The arguments that say what a job is about."""


def view(*, as_json: bool = False) -> View:
    """Return the view that fits the output."""
    if as_json:
        return JsonView()
    if not render.output.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return LiveView()
    return PlainView()


def title(job: Job) -> str:
    """Return what a job does and what it is about, such as `start fast` or `verify weights qwen3.5-4b`."""
    subject = next((str(job.args[name]) for name in SUBJECTS if job.args.get(name)), "")
    name = short(subject)
    return name if name.startswith(f"{job.kind}_") else f"{job.words} {name}".strip()


def short(source: str) -> str:
    """Return the last part of a source or folder, without the revision: `hub:org/name@1a2b` is `name`."""
    name = source.rpartition("/")[2] if "/" in source else source.removeprefix("pypi:")
    return name.partition("@")[0].partition("==")[0]


def note(job: Job) -> str:
    """Return the state of a job in a few words."""
    if not job.live:
        return job.error or (_took(job) if job.state is JobState.SUCCEEDED else str(job.state))
    if job.state is JobState.BLOCKED:
        return "waiting for job " + ", ".join(map(str, job.needs))
    if job.state is JobState.QUEUED and job.error:
        return f"retry in {render.span(max(0.0, job.run_at - time.time()))}: {job.error}"
    return "stopping" if job.cancel_at else job.phase or str(job.state)


def _took(job: Job) -> str:
    return render.span((job.finished_at or 0) - (job.started_at or 0))


def row(job: Job) -> dict[str, Any]:
    """Return a job as it is printed for programs."""
    return asdict(job) | {"state": str(job.state), "needs": list(job.needs)}


class JsonView:
    """One JSON document per change, on stdout."""

    def __init__(self) -> None:
        self._shown: dict[int, dict[str, Any]] = {}

    def show(self, jobs: Sequence[Job]) -> None:
        """Print the jobs that changed."""
        for job in jobs:
            now = row(job)
            if self._shown.get(job.id) != now:
                self._shown[job.id] = now
                render.line({"job": now})

    def tell(self, text: str) -> None:
        """Print something next to the jobs."""
        render.say(text)

    def close(self) -> None:
        """Do nothing."""


class PlainView:
    """A line when a job starts, reaches another phase or tenth, and ends; nothing while nothing changes."""

    def __init__(self) -> None:
        self._shown: dict[int, tuple[Any, ...]] = {}

    def show(self, jobs: Sequence[Job]) -> None:
        """Print the jobs that made progress."""
        for job in jobs:
            mark = _mark(job)
            quiet = job.state in (JobState.BLOCKED, JobState.QUEUED) and not job.error
            before = self._shown.get(job.id)
            if not quiet and before != mark:
                self._shown[job.id] = mark
                same_phase = before is not None and before[:-1] == mark[:-1]
                progress = counted(job, "" if same_phase else resumed(job))
                alone = len(jobs) == 1 and job.state is JobState.FAILED  # then the command ends with its error
                render.say(f"{MARKS[job.state]} {title(job)}: {job.state if alone else progress}")

    def tell(self, text: str) -> None:
        """Print something next to the jobs."""
        render.say(text)

    def close(self) -> None:
        """Do nothing."""


def counted(job: Job, *further: str) -> str:
    """Return the state of a job, what else there is to say, and its progress."""
    done, total = amounts(job)
    parts = [note(job), *further, f"{done / total:.0%} of {amount(job, total)}" if total else ""]
    return ", ".join(part for part in parts if part)


def _mark(job: Job) -> tuple[Any, ...]:
    """Return what is worth a line when it changes."""
    done, total = amounts(job)
    return job.state, job.attempt, job.phase if job.live else None, int(STEPS * done / total) if total else None


def resumed(job: Job) -> str:
    """Return where a running download resumed, when it did not start with the first byte."""
    _, total = amounts(job)
    share = (job.progress.get("resumed") or 0) / total if total else 0.0
    return f"resumed at {share:.0%}" if share >= 0.01 else ""  # noqa: PLR2004 (less than a hundredth is the start)


def overall(jobs: Sequence[Job]) -> tuple[float, float]:
    """Return the bytes that are downloaded and the bytes of all, over a chain's pulls.

    (0, 0) where there are not two of them, and where the size of one is not known yet. What score chose says the sizes
    of pulls that have not started.
    """
    pulls = [job for job in jobs if job.kind == "pull" and job.state not in (JobState.FAILED, JobState.CANCELLED)]
    sizes = _sizes(jobs)
    totals = [float(job.progress.get("total") or sizes.get(job.args["source"], 0)) for job in pulls]
    if len(pulls) < 2 or not all(totals):  # noqa: PLR2004 (one pull is its own total)
        return 0.0, 0.0
    return sum(map(_here, pulls, totals)), sum(totals)


def _here(pull: Job, total: float) -> float:
    """Return the bytes of a pull that are downloaded."""
    return total if pull.state is JobState.SUCCEEDED else float(pull.progress.get("done") or 0)


def _sizes(jobs: Sequence[Job]) -> dict[str, int]:
    """Return the bytes of each source, from the choice of models."""
    for job in jobs:
        if job.kind == "score" and job.state is JobState.SUCCEEDED:
            return job.result["sizes"]
    return {}


def amounts(job: Job) -> tuple[float, float]:
    """Return what a running job has done, and of how much; (0, 0) when it does not say."""
    if job.state is not JobState.RUNNING:
        return 0.0, 0.0
    return float(job.progress.get("done") or 0), float(job.progress.get("total") or 0)


def amount(job: Job, count: float) -> str:
    """Return a count in the job's own unit."""
    unit = job.progress.get("unit", "")
    return units.files(count) if unit == "bytes" else f"{round(count, 1):g} {unit}".strip()


def _without_unit(done: str, total: str) -> str:
    """Leave the unit out where the next word has the same one."""
    number, _, unit = done.rpartition(" ")
    return number if number and total.endswith(f" {unit}") else done


class Pace:
    """How fast a job goes, over the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()
        self._started_at = clock()

    def see(self, done: float) -> None:
        """Take a sample."""
        now = self._clock()
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Return units a second; 0 when nothing moves."""
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return max(0.0, last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def eta_s(self, done: float, total: float) -> float | None:
        """Return the seconds that are left; None before there is enough to go by."""
        if self._clock() - self._started_at < WINDOW_S or not self.rate:
            return None
        return (total - done) / self.rate


class LiveView:
    """The chain as a live tree, on a terminal. rich is imported here, where the user waits anyway."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._paces: dict[int, Pace] = {}

    def show(self, jobs: Sequence[Job]) -> None:
        """Redraw the jobs."""
        if self._live is None:
            self._live = _start_live()
        size = self._live.console.size
        self._live.update(self._tree(jobs, size.width, size.height), refresh=True)

    def tell(self, text: str) -> None:
        """Print something above the tree."""
        if self._live is None:
            render.say(text)
        else:
            self._live.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last tree on the terminal and stop."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tree(self, jobs: Sequence[Job], width: int, height: int) -> Group:
        """Draw the total of all pulls, each job, and under it the files being downloaded, as far as there is room."""
        from rich.console import Group

        depth = depths(jobs)
        names = {job.id: f"{'  ' * depth[job.id]}{MARKS[job.state]} {title(job)}" for job in jobs}
        widest = min(NAME_WIDTH, max((len(name) for name in names.values()), default=0))
        lines = self._total(jobs)
        room = height - len(jobs) - len(lines) - 2
        for job in jobs:
            lines.append(self._line(job, names[job.id].ljust(widest), wide=width >= WIDE))
            files = _files(job, 2 * depth[job.id] + 9)[: max(0, room)]
            room -= len(files)
            lines += files
        return Group(*lines)

    def _total(self, jobs: Sequence[Job]) -> list[RenderableType]:
        done, total = overall(jobs)
        if not total or done == total:
            return []
        figures = self._figures(0, done, total, units.files)
        return [_text(("All pulls  ", "bold"), (f"{bar(done / total)} {figures}", ""))]

    def _line(self, job: Job, name: str, *, wide: bool) -> RenderableType:
        style = "red" if job.state is JobState.FAILED else "bright_black"
        remark = self._note(job, wide=wide)
        return _text((f"{job.id:>4} ", "bright_black"), (f"{name}  ", render.COLORS[job.state]), (remark, style))

    def _note(self, job: Job, *, wide: bool) -> str:
        done, total = amounts(job)
        if not total:
            return f"{note(job)}{self._elapsed(job)}"
        figures = self._figures(job.id, done, total, lambda count: amount(job, count))
        phase = "" if job.phase == "fetching" else note(job)
        parts = [f"{bar(done / total)} {figures}" if wide else figures, resumed(job), phase]
        return "  ".join(part for part in parts if part)

    def _figures(self, number: int, done: float, total: float, say: Callable[[float], str]) -> str:
        """Return share and amounts, after some seconds also rate and time left."""
        pace = self._paces.setdefault(number, Pace())
        pace.see(done)
        parts = [f"{done / total:4.0%}", f"{_without_unit(say(done), say(total))} of {say(total)}"]
        if (eta := pace.eta_s(done, total)) is not None:
            parts += [f"{say(pace.rate)}/s", f"{render.span(eta)} left"]
        return "  ".join(parts)

    def _elapsed(self, job: Job) -> str:
        """Return how long a running job without figures has taken so far."""
        if job.state is not JobState.RUNNING or not job.started_at:
            return ""
        return f"  {int(time.time() - job.started_at)}s"


def _files(job: Job, indent: int) -> list[RenderableType]:
    """Draw a line for each large file that a pull is downloading."""
    if job.state is not JobState.RUNNING:
        return []
    files: Sequence[tuple[str, int, int]] = job.progress.get("files") or ()
    return [
        _text((f"{'':{indent}}{name}  {done / size:.0%} of {units.files(size)}", "bright_black"))
        for name, done, size in files
        if size >= SMALL_FILE
    ]


def _text(*parts: tuple[str, str]) -> RenderableType:
    """Return one line of pieces, each with its style; what does not fit is cut."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    for words, style in parts:
        text.append(printable(words), style=style)
    return text


def _start_live() -> Live:
    from rich.console import Console
    from rich.live import Live

    live = Live(
        console=Console(file=raw(sys.stderr), highlight=False, no_color=render.refuses_color()),
        auto_refresh=False,
        vertical_overflow="visible",
    )
    live.start()
    return live


def bar(share: float, width: int = 12) -> str:
    """Draw a share from 0 to 1."""
    full = round(min(1.0, max(0.0, share)) * width)
    return "█" * full + "░" * (width - full)


def depths(jobs: Sequence[Job]) -> dict[int, int]:
    """Return the depth of each job in the tree of what needs what; needs come before what needs them."""
    depth: dict[int, int] = {}
    for job in jobs:
        depth[job.id] = max((depth[need] + 1 for need in job.needs if need in depth), default=0)
    return depth
