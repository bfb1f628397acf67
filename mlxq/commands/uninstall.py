"""`mlxq uninstall`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from catalog import units
from mlxq import autostart, confirm, options, render, worker_process
from state import files, settings
from state.errors import Busy, MlxqError, UsageProblem
from state.paths import Home, get_home

END_S = 60.0
"""Seconds in which a worker of a deleted home ends its services and itself."""


@click.command()
@click.option("--system", is_flag=True, help="Remove what was installed with --system.")
@click.option("--all", "everything", is_flag=True, help="Also stop all services and delete the data of mlxq.")
@click.option("--keep-models", is_flag=True, help="With --all: keep the folder of the models.")
@options.dry_run
@options.yes
def command(*, system: bool, everything: bool, keep_models: bool, dry_run: bool, yes: bool) -> None:
    """Remove the autostart entry; services keep running.

    With --all, remove everything that mlxq has on this machine: services, data, completions. The program itself stays;
    the command that removes it is printed.
    """
    if not everything:
        if keep_models or dry_run:
            raise UsageProblem("--keep-models and --dry-run go with --all.", hint="mlxq uninstall --all --dry-run")
        _remove_autostart(system=system)
        return
    home = get_home()
    inventory = _inventory(home, keep_models=keep_models)
    _show(inventory)
    if dry_run:
        return
    if inventory.removed:
        confirm.deletion(yes=yes)
    _remove_autostart(system=system)
    _stop(home)
    for path in inventory.removed:
        _delete(path)
    with suppress(OSError):  # what is kept is in it
        home.root.rmdir()
    if inventory.removed:
        render.say(f"Deleted {units.files(sum(inventory.removed.values()))}.")
    if inventory.removal:
        render.next_step(inventory.removal)


def _remove_autostart(*, system: bool) -> None:
    for sentence in autostart.uninstall(autostart.describe(system=system)):
        click.echo(sentence)


@dataclass(frozen=True)
class Inventory:
    """What mlxq has on this machine."""

    removed: Mapping[Path, int]
    """What is deleted, with its bytes: a folder of models is walked once."""
    kept: Mapping[Path, int]
    removal: str | None
    """The command that removes the program; None for a checkout."""


def _inventory(home: Home, *, keep_models: bool) -> Inventory:
    """Return what is deleted and what stays.

    A folder for models elsewhere than in the home is never deleted whole, as other files may be in it: what mlxq
    downloaded to it is. The home is deleted as it is, without following links.
    """
    from tasks.upgrade import installation

    models = _models(home)
    inside = models.is_relative_to(home.root)
    own = [] if keep_models or inside else _downloaded(models)
    data = [path for path in home.root.iterdir() if not (keep_models and path == home.models)] if _is_ours(home) else []
    staying = [models] if models.is_dir() and (keep_models or not inside) else []
    removed = [*_completions(), *own, *data]
    return Inventory(_sizes(removed), _sizes(staying), installation.origin(home).removal)


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: size(path) for path in paths}


def _is_ours(home: Home) -> bool:
    """Return whether a folder is a home of mlxq's: MLXQ_HOME may name any folder. Raises UsageProblem."""
    if not home.root.is_dir():
        return False
    if not home.run.is_dir() and any(home.root.iterdir()):
        raise UsageProblem(f"{home.root} is no home of mlxq's.", done="Nothing was deleted.", hint="mlxq status")
    return True


def _models(home: Home) -> Path:
    try:
        return settings.load(home).models(home)
    except MlxqError:  # a damaged config.yaml is no reason to stay
        return home.models


def _downloaded(models: Path) -> list[Path]:
    """Return the folders in a folder of models that mlxq downloaded or began to."""
    from tasks.weights import manifest, staging

    if not models.is_dir():
        return []
    folders = [path for path in models.iterdir() if path.is_dir() and not path.is_symlink()]
    return [path for path in folders if manifest.read(path) or path.name.endswith(staging.SUFFIX)]


def _completions() -> list[Path]:
    from mlxq.commands import completion

    return [path for path in map(completion.target, completion.SHELLS) if completion.is_ours(path)]


def size(path: Path) -> int:
    """Return the bytes of a file, or of the files below a folder; links count as themselves."""
    if path.is_dir() and not path.is_symlink():
        return files.size(path)
    return path.lstat().st_size if path.exists() else 0


def _show(inventory: Inventory) -> None:
    rows = [[path, units.files(count), "deleted"] for path, count in inventory.removed.items()]
    rows += [[path, units.files(count), "kept"] for path, count in inventory.kept.items()]
    if rows:
        render.table(["PATH", "SIZE", ""], rows, right=(1,))
    else:
        render.say("There is no data to delete.")
    if inventory.removal:
        render.say(f"The program stays; this removes it: {inventory.removal}")
    else:
        render.say("The program stays: it runs from a checkout.")


def _stop(home: Home) -> None:
    """Stop services and worker. Raises Busy where a worker stays, which would write to what is deleted."""
    from tasks.system import process
    from tasks.upgrade import back

    if not home.database.exists():
        return
    worker_process.stop_any(home)
    back.end_worker(home)
    for identity in process.services_of(str(home.root)):
        process.stop(identity, worker_process.STOP_LIMIT_S / 2)
    until = time.monotonic() + END_S
    while files.locked(home.worker_lock):
        if time.monotonic() > until:
            raise Busy(f"A worker of {home.root} does not end.", done="Nothing was deleted.", hint="mlxq status")
        time.sleep(worker_process.LOOK_S)


def _delete(path: Path) -> None:
    """Delete a file or a folder; a link is deleted itself. Raises MlxqError."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as problem:
        raise MlxqError(f"Cannot delete {path}: {problem.strerror}.", hint=f"ls -la {path.parent}") from problem
