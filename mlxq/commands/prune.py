"""`mlxq prune`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import jobs_client, local_models, options, render
from mlxq.commands import rm
from mlxq.local_models import Installed
from state.paths import get_home
from tasks import recommend
from tasks.weights import manifest, staging


@click.command()
@click.option("--unused", is_flag=True, help="Also delete complete models that no tier serves.")
@options.dry_run
@options.yes
@options.as_json
def command(*, unused: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete incomplete, damaged and outdated model files.

    --json prints what would be deleted with --dry-run, or what was deleted with --yes.
    """
    home = get_home()
    local_models.require_writable(home)
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
