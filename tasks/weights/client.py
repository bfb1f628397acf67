"""Weights on this machine, as tasks use them: ask the Hub, fetch, hash again. The work runs in child processes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalog.description.describe import Description
from state.errors import NotFound, UsageProblem
from tasks.system import disk_access
from tasks.system.child import Progress, run_child
from tasks.weights import description, manifest, source
from tasks.weights.hub import DownloadPlan
from tasks.weights.manifest import File, Manifest
from tasks.weights.source import PullRequest, Source

_CHILD = "tasks.weights"


@dataclass(frozen=True)
class Fetched:
    """A folder of whole, readable weights."""

    folder: Path
    revision: str
    notes: tuple[str, ...]
    """What the user should know, such as a token that was refused."""


def _nothing(_: dict[str, Any]) -> None:
    return None


def _never() -> bool:
    return False


def plan_download(source: str, *, cancelled: Callable[[], bool] = _never) -> DownloadPlan:
    """Ask the Hub what a pull of `hub:org/name[@revision]` would fetch: files, bytes, gate, licence, commit.

    Raises NotFound, Gated, Offline, Damaged, UsageProblem, Later, Cancelled.
    """
    answer = run_child(_CHILD, {"do": "plan", "source": source}, cancelled=cancelled)
    files = tuple(File(**file) for file in answer.pop("files"))
    notes = tuple(answer.pop("notes"))
    return DownloadPlan(**answer, files=files, notes=notes)


def describe(text: str, models: Path, *, cancelled: Callable[[], bool] = _never) -> Description:
    """Return what a source needs that the catalog does not have: by its weights here, else by the Hub or the folder.

    Raises NotFound, Gated, Offline, Damaged, UsageProblem, Later, Cancelled.
    """
    wanted = source.parse(text)
    folder = Path(wanted.name) if wanted.kind == "file" else here(text, models)
    if folder is not None:
        return _described(folder, text)
    if wanted.kind != "hub":
        raise UsageProblem(f"{text} is no repo and no folder.", hint="mlxq models --catalog")
    answer = run_child(_CHILD, {"do": "describe", "source": text}, cancelled=cancelled)
    return Description(answer["row"], answer["quant"], tuple(answer["unknown"]))


def _described(folder: Path, text: str) -> Description:
    """Return what the weights in a folder need. Raises NotFound, Damaged."""
    try:
        return description.of_folder(folder, text)
    except NotADirectoryError as problem:
        raise UsageProblem(f"{folder} is no folder.", hint=f"mlxq pull {shlex.quote(str(folder))}") from problem
    except OSError as problem:
        reason, hint = disk_access.reason(problem, folder), disk_access.hint(problem, folder)
        raise NotFound(f"{folder} cannot be read: {reason}.", hint=hint) from problem


def here(text: str, models: Path) -> Path | None:
    """Return the folder of a source that was fetched before, the newest one, without asking anybody.

    Only for what does not change where it lies: a file on this machine is looked at again.
    """
    wanted = source.parse(text)
    if wanted.kind == "file" or not models.is_dir():
        return None
    folders = [folder for folder in models.iterdir() if not folder.name.startswith(".")]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        if _is_of(wanted, manifest.read(folder)):
            return folder
    return None


def fetch(request: PullRequest, *, on_progress: Progress = _nothing, cancelled: Callable[[], bool] = _never) -> Fetched:
    """Download weights, or return at once when they are installed. A killed or cancelled download resumes.

    `on_progress` gets {"phase"} and, while fetching, {"bytes", "total", "rate", "resumed": bytes that were here when it
    began, "file", "files": name, bytes and size of each that is on its way} in bytes and bytes/s.
    Raises NotFound, Gated, Offline, Damaged, DoesNotFit, UsageProblem, Busy (another process makes the same folder),
    Later (the host asked for a pause, or the disk is full: snooze), Cancelled.
    """
    done = run_child(_CHILD, {"do": "fetch", **asdict(request)}, on_progress=on_progress, cancelled=cancelled)
    return Fetched(Path(done["folder"]), done["revision"], tuple(done["notes"]))


def verify(folder: Path, *, on_progress: Progress = _nothing, cancelled: Callable[[], bool] = _never) -> list[str]:
    """Hash every file of a folder again and return the names of those that are not as they were fetched.

    Raises NotFound for a folder without a manifest, Cancelled.
    """
    request = {"do": "verify", "folder": str(folder)}
    return run_child(_CHILD, request, on_progress=on_progress, cancelled=cancelled)["damaged"]


def _is_of(wanted: Source, record: Manifest | None) -> bool:
    """Return whether a folder holds what is asked for."""
    if record is None or (record.source, record.convert) != (str(wanted), wanted.convert):
        return False
    return wanted.kind == "pypi" or wanted.revision in {source.DEFAULT, record.revision}
