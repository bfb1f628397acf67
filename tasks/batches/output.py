"""The results of a batch as a file of the user's."""

from __future__ import annotations

import shutil
from pathlib import Path

from state.batches import stored_files
from state.batches.batches import Batch
from state.errors import MlxqError, NotFound
from state.paths import Home


def stored(home: Home, batch: Batch, *, errors: bool = False) -> Path | None:
    """Return the file of a batch's answers, or of its errors; None where it has none. Raises NotFound."""
    name, size = (batch.error_file, batch.error_bytes) if errors else (batch.output_file, batch.output_bytes)
    if not name or not size:
        return None
    path = stored_files.path(home, name)
    if not path.is_file():
        raise NotFound(f"The results of {batch.id} were deleted, or have expired.", hint="mlxq batch list")
    return path


def write(home: Home, batch: Batch, out: Path, *, errors: bool = False) -> None:
    """Write the answers, or the errors, to a file in one step. Raises NotFound, MlxqError."""
    source = stored(home, batch, errors=errors)
    temporary = out.with_name(f"{out.name}.partial")
    try:
        temporary.write_bytes(b"")
        if source:
            shutil.copyfile(source, temporary)
        temporary.replace(out)
    except OSError as problem:
        raise MlxqError(f"Cannot write {out}: {problem.strerror}.", hint=f"mlxq batch output {batch.id}") from problem
