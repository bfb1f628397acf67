"""What a repo's small files tell of its weights, so that no byte of weights that cannot be served is fetched."""

from __future__ import annotations

from pathlib import Path

from state.errors import Damaged, NotFound
from tasks.weights import chat_template, convert, loaders
from tasks.weights.formats import headers
from tasks.weights.hub import DownloadPlan, Hub

NOTHING = "None of its weights was fetched."


def check(hub: Hub, plan: DownloadPlan, folder: Path) -> None:
    """Check the small files of a repo, which are in `folder`, against the list of all its files.

    Raises NotFound for a model that the installed loaders cannot load, Damaged for one that is not whole.
    """
    try:
        _check(hub, plan, folder)
    except (NotFound, Damaged) as problem:
        problem.message = problem.message.replace(str(folder), plan.repo)
        problem.done = NOTHING
        problem.hint = problem.hint or loaders.CONVERSIONS
        raise


def _check(hub: Hub, plan: DownloadPlan, folder: Path) -> None:
    config = loaders.check(plan.repo, headers.read_json(folder / "config.json"))
    shards = headers.check_files(plan.repo, [file.name for file in plan.files], config)
    chat_template.check(plan.repo, folder)
    if config.quantization:
        convert.check_packing(plan.repo, config.quantization)
    if (folder / headers.INDEX).is_file():
        _check_index(hub, plan, shards, folder / headers.INDEX)


def _check_index(hub: Hub, plan: DownloadPlan, shards: list[str], index: Path) -> None:
    """Raise Damaged when the index names shards that are not listed, and the listed ones do not hold their tensors.

    Some indexes name files that were renamed: their headers, a few kilobytes each, tell whether all is there.
    """
    document = headers.read_json(index)
    unlisted = headers.shards_of(document) - set(shards)
    if not unlisted:
        return
    read = [hub.header(plan.repo, plan.revision, file) for file in plan.files if file.name in shards]
    if lost := headers.lost_shards(document, read):
        raise Damaged(f"{plan.repo} does not have {', '.join(lost)}, which its index names.")
