"""Weights that the user has as a folder or an archive on this machine."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from state.errors import Damaged, NotFound
from tasks.system import file_copy
from tasks.weights import repo_files
from tasks.weights.formats import headers

NOTHING = "Nothing was installed."
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What Python's archives raise for damaged members, unknown methods and passwords."""


def revision(path: Path) -> str:
    """Name what lies there by names, sizes and times of change, so that a changed folder is another revision."""
    if not path.exists():
        raise NotFound(f"There is no {path}.", hint="mlxq pull file:/the/folder/or/archive")
    members = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [(member.name, member.stat().st_size, member.stat().st_mtime_ns) for member in members if member.is_file()]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def check(path: Path) -> None:
    """Raise NotFound for a folder that holds no model, Damaged for one with links to other places in it.

    What an archive holds is seen when it is opened.
    """
    if path.is_dir():
        names = headers.plain_files(path)
        repo_files.check_loadable(str(path), names)
        _refuse_foreign_links(path, repo_files.choose(names))


def _refuse_foreign_links(path: Path, names: Sequence[str]) -> None:
    """Raise Damaged for a link: what it leads to, say a file of keys, would be copied as a part of the model.

    The Hub's cache is made of links, each from `snapshots/<commit>` to `blobs` of the same repo.
    """
    blobs = path.resolve().parent.parent / "blobs" if path.resolve().parent.name == "snapshots" else None
    for name in names:
        if (path / name).is_symlink() and (path / name).resolve().parent != blobs:
            raise Damaged(f"{path} holds {name!r}, which is a link to another place.", done=NOTHING)


def size(path: Path) -> int:
    """Return the bytes it will take, as far as is known before it is opened."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    return path.stat().st_size


def copy(path: Path, folder: Path, *, code: bool = False) -> None:
    """Bring the files a loader reads into `folder`.

    Raises Damaged for an archive that would write elsewhere or cannot be unpacked, NotFound for what is no archive.
    """
    if path.is_dir():
        names = repo_files.choose(headers.plain_files(path), code=code)
        _refuse_foreign_links(path, names)
        for name in names:
            file_copy.copy(path / name, folder / name)
        return
    unpack = _unzip if zipfile.is_zipfile(path) else _untar if tarfile.is_tarfile(path) else None
    if unpack is None:
        raise NotFound(f"{path} is neither a folder nor a zip or tar archive.", hint="mlxq pull file:/a/folder")
    try:
        unpack(path, folder, code=code)
    except (*UNREADABLE, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno:
            raise  # the disk's fault; those of gzip and bz2 have no number
        raise Damaged(f"{path} cannot be unpacked: {problem}.", done=NOTHING) from problem


def _unzip(path: Path, folder: Path, *, code: bool) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]
        for name, inside in _top(names, code=code).items():
            with archive.open(inside) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _untar(path: Path, folder: Path, *, code: bool) -> None:
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive.getmembers() if member.isfile()}
        _expect_end(archive)
        _refuse_links(path, archive)
        for name, inside in _top(list(members), code=code).items():
            source = archive.extractfile(members[inside])
            assert source
            with source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _expect_end(archive: tarfile.TarFile) -> None:
    """Raise one of UNREADABLE unless an archive ends as one does.

    tarfile takes a broken header for the end, and never gets to the checksum at the end of a compressed archive.
    """
    names, file = archive.getnames(), archive.fileobj
    assert file
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"what follows {names[-1]} is damaged")
    while file.read(1 << 20):
        pass


def _refuse_links(path: Path, archive: tarfile.TarFile) -> None:
    odd = [member.name for member in archive.getmembers() if not (member.isfile() or member.isdir())]
    if odd:
        raise Damaged(f"{path} holds {odd[0]!r}, which is not a regular file.", done=NOTHING)


def _top(names: list[str], *, code: bool) -> dict[str, str]:
    """Map each wanted file's name to its place in an archive that may hold one folder around everything."""
    for name in names:
        repo_files.safe(name.removeprefix("./"))
    plain = {name.removeprefix("./"): name for name in names}
    tops = {name.partition("/")[0] for name in plain}
    around = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in plain) else ""
    inside = {name.removeprefix(around): member for name, member in plain.items()}
    return {name: inside[name] for name in repo_files.choose(inside, code=code)}
