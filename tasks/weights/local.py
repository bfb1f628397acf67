"""Weights that the user has as a folder or an archive on this machine."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path

from state.errors import Damaged, NotFound
from tasks.system import file_copy
from tasks.weights import repo_files


def revision(path: Path) -> str:
    """Name what lies there by names, sizes and times of change, so that a changed folder is another revision."""
    if not path.exists():
        raise NotFound(f"There is no {path}.", hint="mlxq pull file:/the/folder/or/archive")
    members = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [(member.name, member.stat().st_size, member.stat().st_mtime_ns) for member in members if member.is_file()]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def check(path: Path) -> None:
    """Raise NotFound for a folder that holds no model; what an archive holds is seen when it is opened."""
    if path.is_dir():
        repo_files.check_loadable(str(path), [file.name for file in path.iterdir() if file.is_file()])


def size(path: Path) -> int:
    """Return the bytes it will take, as far as is known before it is opened."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    return path.stat().st_size


def copy(path: Path, folder: Path, *, code: bool = False) -> None:
    """Bring the files a loader reads into `folder`. Raises Damaged for an archive that would write elsewhere."""
    if path.is_dir():
        for name in repo_files.choose([member.name for member in path.iterdir() if member.is_file()], code=code):
            file_copy.copy(path / name, folder / name)
    elif zipfile.is_zipfile(path):
        _unzip(path, folder, code=code)
    elif tarfile.is_tarfile(path):
        _untar(path, folder, code=code)
    else:
        raise NotFound(f"{path} is neither a folder nor a zip or tar archive.", hint="mlxq pull file:/a/folder")


def _unzip(path: Path, folder: Path, *, code: bool) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]
        for name, inside in _top(names, code=code).items():
            with archive.open(inside) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _untar(path: Path, folder: Path, *, code: bool) -> None:
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive.getmembers() if member.isfile()}
        _refuse_links(path, archive)
        for name, inside in _top(list(members), code=code).items():
            source = archive.extractfile(members[inside])
            assert source
            with source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _refuse_links(path: Path, archive: tarfile.TarFile) -> None:
    odd = [member.name for member in archive.getmembers() if not (member.isfile() or member.isdir())]
    if odd:
        raise Damaged(f"{path} holds {odd[0]!r}, which is not a regular file.", done="Nothing was installed.")


def _top(names: list[str], *, code: bool) -> dict[str, str]:
    """Map each wanted file's name to its place in an archive that may hold one folder around everything."""
    for name in names:
        repo_files.safe(name.removeprefix("./"))
    plain = {name.removeprefix("./"): name for name in names}
    tops = {name.partition("/")[0] for name in plain}
    around = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in plain) else ""
    inside = {name.removeprefix(around): member for name, member in plain.items()}
    return {name: inside[name] for name in repo_files.choose(inside, code=code)}
