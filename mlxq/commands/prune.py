"""`mlxq prune`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from catalog import units
from mlxq import confirm, job_view, jobs_client, local_models, options, render
from mlxq.commands import rm
from mlxq.local_models import Installed
from state.paths import Home, get_home
from tasks import kinds, recommend
from tasks.system import prompt_cache
from tasks.weights import manifest, staging


@click.command()
@click.option("--unused", is_flag=True, help="Also delete complete models that no tier serves.")
@click.option("--cache", is_flag=True, help="Delete cached prompts instead, in memory and on disk.")
@options.dry_run
@options.yes
@options.as_json
def command(*, unused: bool, cache: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete incomplete, damaged and outdated model files.

    With --cache, delete the engines' cached prompts instead. --json prints what would be deleted with --dry-run, or
    what was deleted with --yes.
    """
    home = get_home()
    local_models.require_writable(home)
    if cache:
        _prune_cache(home, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    with jobs_client.reading(home) as db:
        installed = local_models.listing(home, db, recommend.all_models(home))
    leftover = leftovers(installed, unused=unused)
    if leftover and not dry_run:
        rm.remove(home, leftover, force=False, yes=yes, listed=not as_json)
    if as_json:
        sizes = sum(row.size for row in leftover)
        render.data({"deleted": not dry_run, "models": [row.row() for row in leftover], "total_bytes": sizes})
    elif not leftover:
        render.say("There is nothing to delete.")
    elif dry_run:
        rm.show(leftover)


def _prune_cache(home: Home, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete what the engines keep of old prompts; each prompt is then read in full once more."""
    size = sum(map(prompt_cache.size, prompt_cache.folders(home)))
    if not as_json:
        render.say(f"Engines keep {units.files(size)} of old prompts on disk, and others in memory.")
    if not dry_run:
        confirm.deletion(yes=yes)
        with jobs_client.writing(home) as db:
            ids = jobs_client.enqueue(db, [kinds.new("prune_cache")])
        size = jobs_client.follow(home, jobs_client.these(ids), job_view.view())[0].result["bytes"]
    if as_json:
        render.data({"deleted": not dry_run, "models": [], "total_bytes": size})
    elif not dry_run:
        render.say(f"Deleted {units.files(size)}.")


def leftovers(installed: Sequence[Installed], *, unused: bool) -> list[Installed]:
    """Return what no tier serves and no job downloads: incomplete, damaged, or an older revision of what is installed.

    `unused`: also complete weights. What this mlxq did not download is never in the list, nor what `mlxq verify` would
    find right.
    """
    return [row for row in installed if _is_free(row) and (unused or _is_useless(row, installed))]


def _is_free(row: Installed) -> bool:
    """Return whether a folder may go: this mlxq made it, no tier serves it and no job is writing to it."""
    ours = row.recorded and bool(row.source or row.state == "partial")
    return ours and row.state != "unreadable" and not row.used_by and not _is_downloading(row)


def _is_useless(row: Installed, installed: Sequence[Installed]) -> bool:
    """Return whether nothing can use a folder; one is damaged when files are missing or of another size."""
    damaged = row.state == "damaged" and bool(manifest.changed(row.folder))
    return row.state == "partial" or damaged or _is_outdated(row, installed)


def _is_downloading(row: Installed) -> bool:
    return row.state == "partial" and staging.held(row.folder.with_name(row.folder.name.removesuffix(staging.SUFFIX)))


def _is_outdated(row: Installed, installed: Sequence[Installed]) -> bool:
    """Return whether this mlxq downloaded a newer revision of the same source, and can use it."""
    return bool(row.source) and any(
        (other.source, other.recorded) == (row.source, True)
        and other.revision != row.revision
        and other.pulled > row.pulled
        and other.state in {"valid", "loadable"}
        for other in installed
    )
