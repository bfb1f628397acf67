"""Make one folder of weights from its source, whole or not at all. Runs in a child process."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from state.errors import Damaged, MlxqError, NotFound, UsageProblem
from tasks.system import disk_access
from tasks.weights import chat_template, convert, disk, loaders, local, manifest, precheck, source, staging
from tasks.weights.formats import headers
from tasks.weights.hub import DownloadPlan, Hub, adopt_cached
from tasks.weights.manifest import File, Manifest
from tasks.weights.source import PullRequest, Source
from tasks.weights.staging import Staging

if TYPE_CHECKING:
    from tasks.system.child import Report

_SOURCE = "source"
_MADE = "made"


@dataclass(frozen=True)
class Install:
    """One folder in the making."""

    request: PullRequest
    wanted: Source
    staging: Staging
    report: Report

    @property
    def into(self) -> Path:
        """Where files of the source go: beside those that a conversion makes of them."""
        return self.staging.folder / _SOURCE if self.wanted.convert else self.staging.folder


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
    target = _target(request, wanted, planned.revision)
    if _is_done(request, target):
        return _told(target, planned.revision, planned.notes)
    with staging.hold(target) as stage:
        work = Install(request, wanted, stage, report)
        work.into.mkdir(exist_ok=True)
        _download(work, hub, planned)
        record = Manifest(str(wanted), planned.revision, planned.files, licence=planned.licence)
        _finish(work, record, planned.repo, loaders.CONVERSIONS)
    return _told(target, planned.revision, planned.notes)


def _download(work: Install, hub: Hub, planned: DownloadPlan) -> None:
    """Bring the files of a repo: first the small ones, which tell whether the weights are worth their bytes."""
    from tasks.weights.downloader import Download

    quant, floor_bytes = work.wanted.convert, work.request.floor_bytes
    extra = convert.result_bytes(quant, planned.size) if quant else 0
    work.report({"phase": "adopting"})
    adopt_cached(planned.repo, planned.files, work.into)
    disk.reserve(work.staging.folder, planned.size + extra, floor_bytes=floor_bytes)
    transfer = Download(hub, planned.repo, planned.revision, work.into, floor_bytes=floor_bytes)
    small, large = _by_kind(planned.files)
    transfer.fetch(small, _unheard)
    try:
        precheck.check(hub, planned, work.into)
    except (NotFound, Damaged):
        work.staging.discard()
        raise
    transfer.fetch([*small, *large], work.report)


def _from_disk(request: PullRequest, wanted: Source, report: Report) -> dict[str, Any]:
    path = Path(wanted.name)
    try:
        revision = local.revision(path)
        local.check(path)
    except OSError as problem:
        reason, hint = disk_access.reason(problem, path), disk_access.hint(problem, path)
        raise NotFound(f"{path} cannot be read: {reason}.", hint=hint) from problem
    target = _target(request, wanted, revision)
    if _is_done(request, target):
        return _told(target, revision)
    with staging.hold(target) as stage:
        try:
            _copy(Install(request, wanted, stage, report), path, revision)
        except (MlxqError, OSError):
            stage.discard()  # to copy it again takes less than to find out what it is
            raise
    return _told(target, revision)


def _copy(work: Install, path: Path, revision: str) -> None:
    """Make the folder from one on this machine, or from an archive."""
    advice = f"Replace what is wrong in {path}, then: mlxq pull {shlex.quote(str(path))}"
    work.into.mkdir(exist_ok=True)
    disk.reserve(work.staging.folder, local.size(path), floor_bytes=work.request.floor_bytes)
    work.report({"phase": "copying", "total": local.size(path)})
    local.copy(path, work.into, code=work.request.code)
    headers.inventory(work.into, name=str(path), hint=advice)
    chat_template.check(str(path), work.into)
    _finish(work, Manifest(str(work.wanted), revision, _hashed(work.into, work.report)), str(path), advice)


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


def _finish(work: Install, record: Manifest, name: str, advice: str) -> None:
    """Convert when wanted, fit the weights to this machine, check them and rename the folder into place.

    `name` and `advice`: what an error calls the weights, and what it advises.
    """
    folder, quant, files, pristine = work.staging.folder, work.wanted.convert, record.files, ()
    if quant:
        work.report({"phase": "converting"})
        _convert(folder, quant, Path(work.request.log) if work.request.log else folder / ".convert.log")
        files, pristine = _hashed(folder, work.report), record.files
    work.report({"phase": "preparing"})
    recipe = convert.choose_recipe(convert.backend(), folder)
    changed = set(convert.apply_recipe(recipe, folder))
    if changed:
        pristine = pristine or tuple(file for file in files if file.name in changed)
        files = tuple(_file(folder / file.name) if file.name in changed else file for file in files)
    work.report({"phase": "checking"})
    headers.inventory(folder, name=name, hint=advice)
    done = recipe if changed else None
    work.staging.finish(Manifest(record.source, record.revision, files, done, pristine, record.licence, quant))


def _convert(folder: Path, quant: str, log: Path) -> None:
    """Put what mlx-lm makes of the source in its place."""
    convert.convert(folder / _SOURCE, folder / _MADE, quant, log)
    for path in (folder / _MADE).iterdir():
        path.replace(folder / path.name)
    shutil.rmtree(folder / _SOURCE)


def _hashed(folder: Path, report: Report) -> tuple[File, ...]:
    """Name and hash every plain file of a folder."""
    report({"phase": "checking"})
    return tuple(_file(folder / name) for name in headers.plain_files(folder))


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, "sha256", manifest.hash_file(path, "sha256"))
