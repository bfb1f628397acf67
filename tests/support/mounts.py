"""Disks that go away, hang, or cannot be written: real mounts, in a mount namespace of this process."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

NEW_NAMESPACE, PRIVATE, RECURSIVE = 0x20000, 1 << 18, 0x4000
BIND, REMOUNT, READ_ONLY, DETACH = 0x1000, 0x20, 0x1, 0x2


@cache
def enter() -> ctypes.CDLL:
    """Move this process into a mount namespace of its own, which ends with it. Skips the test where it may not.

    To be called before processes are started that shall see the mounts.
    """
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("mounts need root on Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NAMESPACE) or libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None):
        pytest.skip("this account may have no mount namespace")
    return libc


def _mount(source: str, place: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    if enter().mount(source.encode(), bytes(place), kind.encode() or None, flags, options.encode() or None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(place))


def _unmount(place: Path) -> None:
    """Take a disk away at once, as when its cable is pulled; who has a file of it open keeps that."""
    enter().umount2(bytes(place), DETACH)


@contextmanager
def small(place: Path, size: str) -> Generator[Path]:
    """Lay an empty disk of that size, such as 8m, over a folder."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", place, "tmpfs", options=f"size={size},mode=0700")
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def over(place: Path, source: Path) -> Generator[Path]:
    """Lay the folder `source` over a folder: what was there is away until the end."""
    _mount(str(source), place, flags=BIND)
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def read_only(place: Path) -> Generator[Path]:
    """Make a folder read-only, as a disk with errors is mounted again."""
    _mount(str(place), place, flags=BIND)
    _mount("none", place, flags=BIND | REMOUNT | READ_ONLY)
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def hanging(place: Path) -> Generator[Callable[[], None]]:
    """Lay a disk over a folder that answers nothing, as a network disk whose server is gone: every access waits.

    What is yielded ends the connection: from then on every access fails, and those that waited too.
    """
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    closed = False

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            os.close(descriptor)

    options = f"fd={descriptor},rootmode=40755,user_id=0,group_id=0,allow_other"
    _mount("nowhere", place, "fuse", options=options)
    try:
        yield close
    finally:
        _unmount(place)
        close()


class FailingDisk:
    """A disk of ext4 over a folder."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self._place = place
        self._image = place.with_name(f"{place.name}.img")
        with self._image.open("wb") as file:
            file.truncate(megabytes << 20)
        self._run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", self._image)
        self._mount()

    def fail(self) -> None:
        """Write out what is cached, and have the kernel find an error: it turns the disk read-only, open files too."""
        self._run("sync", "-f", self._place)
        device = self._place.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")

    def replug(self) -> None:
        """Check the disk and connect it again; what was open on it before stays read-only.

        The kernel keeps the old device as long as anything is open on it, so that a copy of the disk takes its place.
        """
        _unmount(self._place)
        self._image = Path(shutil.copy(self._image, self._image.with_suffix(".checked.img")))
        self._run("e2fsck", "-fy", self._image, may_exit=1)  # it corrected something
        self._mount()

    def close(self) -> None:
        """Take the disk away."""
        _unmount(self._place)

    def _mount(self) -> None:
        self._run("mount", "-o", "loop,errors=remount-ro", self._image, self._place)

    @staticmethod
    def _run(*argv: str | Path, may_exit: int = 0) -> None:
        done = subprocess.run(argv, check=False, capture_output=True)
        if done.returncode not in {0, may_exit}:
            raise OSError(done.returncode, done.stderr.decode().strip())


@contextmanager
def failing(place: Path, megabytes: int) -> Generator[FailingDisk]:
    """Lay a disk over a folder that can be made to fail. Skips the test where there are no loop devices."""
    enter()
    if not Path("/dev/loop-control").exists() or not shutil.which("mkfs.ext4"):
        pytest.skip("there is no ext4 on a loop device here")
    disk = FailingDisk(place, megabytes)
    try:
        yield disk
    finally:
        disk.close()


@contextmanager
def dead(place: Path) -> Generator[Path]:
    """Lay a disk over a folder whose every access fails with ENOTCONN."""
    with hanging(place) as close:
        close()
        yield place
