"""Files of the Files API: a row in state.db, and the bytes under MLXQ_HOME/files, which its user alone can read.

A file belongs to the key that uploaded it, by that key's name; for all other keys it does not exist.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from state import files
from state.db import Database, Row
from state.errors import DiskFull, NotFound, UsageProblem
from state.paths import Home

LARGEST_BYTES = 200 * 10**6
"""OpenAI's limit of a batch's input file, "up to 200 MB"."""
KEEP_S = 30 * 86400.0
"""OpenAI's default for files of batches."""
PIECE_BYTES = 1 << 20
RESERVE_BYTES = 10**9
"""Room on the disk that an upload leaves to everything else."""
UPLOADING = ".upload-"
STALE_S = 86400.0


@dataclass(frozen=True)
class StoredFile:
    """One file."""

    id: str
    owner: str
    """The name of the key that it belongs to."""
    purpose: str
    """batch, batch_output for what mlxq wrote, or message_batch for what the Files API does not list."""
    filename: str
    bytes: int
    sha256: str
    created_at: float
    expires_at: float


class Upload:
    """Writes a new file in pieces, hashing it; without `finish` nothing stays."""

    def __init__(self, home: Home) -> None:
        """Open a temporary file. Raises OSError."""
        home.files.mkdir(mode=0o700, exist_ok=True)
        self._home = home
        self._path = home.files / f"{UPLOADING}{secrets.token_hex(12)}"
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Write on. Raises OSError, and UsageProblem beyond LARGEST_BYTES."""
        self.size += len(piece)
        if self.size > LARGEST_BYTES:
            raise UsageProblem(
                f"The file has more than {LARGEST_BYTES // 10**6} MB, the most that a batch's file may have.",
                hint="split -l 10000 FILE   (each part is a batch)",
            )
        self._hash.update(piece)
        self._file.write(piece)

    def finish(
        self, db: Database, owner: str, filename: str, expires_in_s: float = KEEP_S, purpose: str = "batch"
    ) -> StoredFile:
        """Keep the file, and return it. Raises OSError, StateUnavailable."""
        self._file.flush()
        files.sync(self._file.fileno())
        self._file.close()
        now = db.now()
        file = StoredFile(
            new_id("file-"),
            owner,
            purpose,
            filename[-255:],
            self.size,
            self._hash.hexdigest(),
            now,
            now + expires_in_s,
        )
        self._path.replace(path(self._home, file.id))
        try:
            insert(db, file)
        except BaseException:
            path(self._home, file.id).unlink(missing_ok=True)
            raise
        return file

    def discard(self) -> None:
        """Leave nothing of a file that was not finished."""
        with suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


def store(
    db: Database, source: BinaryIO | Iterable[bytes], owner: str, filename: str, purpose: str = "batch"
) -> StoredFile:
    """Copy a stream of bytes into a new file. Raises UsageProblem, DiskFull."""
    try:
        upload = Upload(db.home)
        try:
            for piece in _pieces(source):
                upload.write(piece)
            return upload.finish(db, owner, filename, purpose=purpose)
        finally:
            upload.discard()
    except OSError as problem:
        raise DiskFull(f"The file could not be stored in {db.home.files}: {problem.strerror}.") from problem


def _pieces(source: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    read = getattr(source, "read", None)
    return iter(source) if read is None else iter(lambda: read(PIECE_BYTES), b"")


def new_id(prefix: str) -> str:
    """Return a random id, such as file-… or batch_…."""
    return prefix + secrets.token_hex(12)


def path(home: Home, file_id: str) -> Path:
    """Return where the bytes of a file are. `file_id` is one of ours, never a caller's text."""
    return home.files / file_id


def insert(db: Database, file: StoredFile) -> None:
    """Add the row of a file whose bytes are there."""
    db.insert("files", asdict(file))


def find(db: Database, file_id: str, owner: str | None) -> StoredFile | None:
    """Return a file of an owner, of any for None; None where that owner has none of this id, or it has expired."""
    row = db.row(
        "SELECT * FROM files WHERE id = :id AND (:owner IS NULL OR owner = :owner) AND expires_at > :now",
        {"id": file_id, "owner": owner, "now": db.now()},
    )
    return None if row is None else _file(row)


def get(db: Database, file_id: str, owner: str | None = None) -> StoredFile:
    """Return a file. Raises NotFound."""
    file = find(db, file_id, owner)
    if file is None:
        raise NotFound(f"There is no file {file_id}.", hint="mlxq batch list")
    return file


def listing(
    db: Database, owner: str, *, purpose: str = "", after: str = "", limit: int = 10_000, oldest_first: bool = False
) -> list[StoredFile]:
    """Return an owner's files, the newest first, from the one that follows the file `after`."""
    order = "ASC" if oldest_first else "DESC"
    sign = ">" if oldest_first else "<"
    rows = db.rows(
        "SELECT * FROM files WHERE owner = :owner AND expires_at > :now AND purpose <> 'message_batch'"  # noqa: S608 (the words above)
        f" AND (:purpose = '' OR purpose = :purpose)"
        f" AND (:after = '' OR (created_at, id) {sign} (SELECT created_at, id FROM files"
        " WHERE id = :after AND owner = :owner))"
        f" ORDER BY created_at {order}, id {order} LIMIT :limit",
        {"owner": owner, "now": db.now(), "purpose": purpose, "after": after, "limit": limit},
    )
    return [_file(row) for row in rows]


def delete(db: Database, file_id: str, owner: str) -> bool:
    """Delete a file of an owner; return whether there was one. An open one stays readable to who has it open."""
    if not db.run("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner)):
        return False
    path(db.home, file_id).unlink(missing_ok=True)
    return True


def prune(db: Database) -> int:
    """Delete expired files, and what is left of uploads and batches that no row knows; return how many files."""
    expired = db.rows("SELECT id, owner FROM files WHERE expires_at <= ?", (db.now(),))
    for row in expired:
        delete(db, row["id"], row["owner"])
    if db.home.files.is_dir():
        for stray in db.home.files.iterdir():
            if db.now() - stray.stat().st_mtime > STALE_S and not _belongs(db, stray.name):
                stray.unlink(missing_ok=True)
    return len(expired)


def _belongs(db: Database, name: str) -> bool:
    return bool(
        db.value(
            "SELECT EXISTS (SELECT 1 FROM files WHERE id = :name)"
            " OR EXISTS (SELECT 1 FROM batches WHERE :name IN (input_file, output_file, error_file))",
            {"name": name},
        )
    )


def _file(row: Row) -> StoredFile:
    return StoredFile(**dict(row))
