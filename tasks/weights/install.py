"""Make one folder of weights from its source, whole or not at all. Runs in a child process."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from state.errors import UsageProblem
from tasks.weights import convert, disk, headers, local, manifest, source, staging
from tasks.weights.hub import DownloadPlan, Hub, adopt_cached
from tasks.weights.manifest import File, Manifest
from tasks.weights.source import PullRequest, Source
from tasks.weights.staging import Staging

if TYPE_CHECKING:
    from tasks.system.child import Report

_SOURCE = "source"
_MADE = "made"


def plan(text: str) -> dict[str, Any]:
    """Return the Plan of a Hub source as JSON."""
    wanted = source.parse(text)
    if wanted.kind != "hub":
        raise UsageProblem(f"{text} is not on the Hub.")
    return asdict(Hub().plan(wanted.name, wanted.revision))


def fetch(request: PullRequest, report: Report) -> dict[str, Any]:
    """Make the folder and return {"folder", "revision", "notes"}. Raises what the pieces raise."""
    wanted = source.parse(request.source)
    if wanted.convert:
        convert.check(wanted.convert)
    report({"phase": "asking", "file": wanted.name})
    if wanted.kind == "file":
        return _from_disk(request, wanted, report)
    hub = Hub()
    return _from_hub(request, wanted, hub, hub.plan(wanted.name, wanted.revision, code=request.code), report)


def _from_hub(request: PullRequest, wanted: Source, hub: Hub, planned: DownloadPlan, report: Report) -> dict[str, Any]:
    from tasks.weights.downloader import Download

    target = _target(request, wanted, planned.revision)
    if _is_done(request, target):
        return _told(target, planned.revision, planned.notes)
    with staging.hold(target) as stage:
        into = stage.folder / _SOURCE if wanted.convert else stage.folder
        into.mkdir(exist_ok=True)
        extra = convert.result_bytes(wanted.convert, planned.size) if wanted.convert else 0
        report({"phase": "adopting"})
        adopt_cached(planned.repo, planned.files, into)
        disk.reserve(stage.folder, planned.size + extra, floor_bytes=request.floor_bytes)
        transfer = Download(hub, planned.repo, planned.revision, into, floor_bytes=request.floor_bytes)
        small, large = _by_kind(planned.files)
        transfer.fetch(small, _unheard)
        headers.check_config(planned.repo, headers.read_json(into / "config.json"))
        transfer.fetch([*small, *large], report)
        _finish(
            request,
            wanted,
            stage,
            Manifest(str(wanted), planned.revision, planned.files, licence=planned.licence),
            report,
        )
    return _told(target, planned.revision, planned.notes)


def _from_disk(request: PullRequest, wanted: Source, report: Report) -> dict[str, Any]:
    path = Path(wanted.name)
    revision = local.revision(path)
    local.check(path)
    target = _target(request, wanted, revision)
    if _is_done(request, target):
        return _told(target, revision)
    with staging.hold(target) as stage:
        into = stage.folder / _SOURCE if wanted.convert else stage.folder
        into.mkdir(exist_ok=True)
        disk.reserve(stage.folder, local.size(path), floor_bytes=request.floor_bytes)
        report({"phase": "copying", "total": local.size(path)})
        local.copy(path, into, code=request.code)
        headers.inventory(into)
        _finish(request, wanted, stage, Manifest(str(wanted), revision, _hashed(into, report)), report)
    return _told(target, revision)


def _target(request: PullRequest, wanted: Source, revision: str) -> Path:
    return Path(request.models) / source.folder_name(wanted, revision)


def _is_done(request: PullRequest, target: Path) -> bool:
    return manifest.read(target) is not None and not request.force


def _told(target: Path, revision: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    return {"folder": str(target), "revision": revision, "notes": list(notes)}


def _unheard(_: dict[str, Any]) -> None:
    """Small files tell no progress: their total would be taken for that of the pull."""


def _by_kind(files: Sequence[File]) -> tuple[list[File], list[File]]:
    """Split into the files that say what the model is, and the weights."""
    large = [file for file in files if file.name.endswith(".safetensors")]
    return [file for file in files if file not in large], large


def _finish(request: PullRequest, wanted: Source, stage: Staging, came: Manifest, report: Report) -> None:
    """Convert when asked, fit the weights to this machine, check them and rename the folder into place."""
    files, pristine = came.files, ()
    if wanted.convert:
        report({"phase": "converting"})
        _convert(stage.folder, wanted.convert, Path(request.log) if request.log else stage.folder / ".convert.log")
        files, pristine = _hashed(stage.folder, report), came.files
    report({"phase": "preparing"})
    recipe = convert.choose_recipe(convert.backend(), stage.folder)
    changed = set(convert.apply_recipe(recipe, stage.folder))
    if changed:
        pristine = pristine or tuple(file for file in files if file.name in changed)
        files = tuple(_file(stage.folder / file.name) if file.name in changed else file for file in files)
    report({"phase": "checking"})
    headers.inventory(stage.folder)
    done = recipe if changed else None
    stage.finish(Manifest(came.source, came.revision, files, done, pristine, came.licence, wanted.convert))


def _convert(folder: Path, quant: str, log: Path) -> None:
    """Put what mlx-lm makes of the source in its place."""
    convert.convert(folder / _SOURCE, folder / _MADE, quant, log)
    for path in (folder / _MADE).iterdir():
        path.replace(folder / path.name)
    shutil.rmtree(folder / _SOURCE)


def _hashed(folder: Path, report: Report) -> tuple[File, ...]:
    """Name and hash every plain file of a folder."""
    report({"phase": "checking"})
    return tuple(_file(path) for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, "sha256", manifest.hash_file(path, "sha256"))
