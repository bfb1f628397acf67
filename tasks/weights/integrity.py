"""Hash weights again, and take damaged ones out of use."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from state.errors import NotFound
from tasks.weights import manifest, staging

if TYPE_CHECKING:
    from tasks.system.child import Report


def damaged(folder: Path, report: Report) -> list[str]:
    """Return the files that are missing or not what the manifest says. Runs in a child; reads every byte.

    Raises NotFound for a folder without a manifest: nothing says what should be in it.
    """
    record = manifest.read(folder)
    if record is None:
        raise NotFound(f"{folder} has no {manifest.NAME}, so there is nothing to compare with.", hint="mlxq models")
    wrong: list[str] = []
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size
        report({"phase": "checking", "bytes": read, "total": record.size})

    for file in record.files:
        path = folder / file.name
        whole = path.is_file() and path.stat().st_size == file.size
        if not whole or manifest.hash_file(path, file.algorithm, count) != file.digest:
            wrong.append(file.name)
    return wrong


def quarantine(folder: Path, names: list[str]) -> None:
    """Take a damaged folder out of use and keep what is right of it for the next fetch. Raises Busy.

    It becomes a staging folder without the damaged files. Files that a recipe or a conversion made go too: the
    fetch must make them from the pristine ones again.
    """
    record = manifest.read(folder)
    with staging.hold(folder) as stage:
        shutil.rmtree(stage.folder)
        folder.rename(stage.folder)
        if record:
            names = [*names, *(file.name for file in record.pristine), manifest.NAME]
        if record and record.convert:
            names = [path.name for path in stage.folder.iterdir() if path.is_file()]
        for name in names:
            (stage.folder / name).unlink(missing_ok=True)
