"""Logs are rotated under their writers: no line lost, no hole left, and on a full disk nothing made worse."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from state.errors import DiskFull
from tasks.system import log_rotation, process
from tasks.system.process import Identity

WRITER = """
import sys
n = 0
big = open(sys.argv[1], "ab", buffering=0)
while big.tell() < int(sys.argv[2]):
    big.write(b"".join(b"%012d %s\\n" % (n + i, b"x" * 87) for i in range(10000)))
    n += 10000
print("big", flush=True)
while sys.stdin.read(0) == "" and n < 10**9:
    big.write(b"%012d %s\\n" % (n, b"x" * 87))
    n += 1
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "fast.log"


@pytest.fixture
def written_bytes() -> int:
    """Return the bytes that a log has before it is rotated; `LOG_BYTES=200000000` is a log of days."""
    return int(os.environ.get("LOG_BYTES", str(20 * 10**6)))


@pytest.fixture
def writer(log: Path, written_bytes: int) -> Iterator[Identity]:
    """Start a process that has written so many bytes of numbered lines and continues as fast as it can."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(log), str(written_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == b"big\n"
        identity = process.identify(program.pid)
        assert identity
        yield identity
        program.kill()


def quiet() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def unpacked(archive: Path) -> bytes:
    return gzip.decompress(archive.read_bytes())


def numbers(log: Path) -> Iterator[int]:
    """Give the line numbers of the archives and the log, in order."""
    for archive in reversed(log_rotation.archives(log)):
        with gzip.open(archive) as file:
            yield from (int(line[:12]) for line in file)
    with log.open("rb") as file:
        yield from (int(line[:12]) for line in file)


def await_more(log: Path) -> None:
    """Wait until the writer, let go, has written on: a crowded machine may be slow to let it run."""
    until = time.monotonic() + 60
    while not log.stat().st_size:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_big_log_under_a_writer_that_never_rests_loses_no_line(
    log: Path, writer: Identity, written_bytes: int
) -> None:
    longest = 0.0
    for _ in range(3):
        began = time.monotonic()
        moved = log_rotation.rotate(log, 3, lambda: log_rotation.held([writer]))
        longest = max(longest, time.monotonic() - began)
        assert moved > 0
        await_more(log)
    assert not process.frozen(writer)
    process.send(writer, signal.SIGKILL)
    process.wait(writer, 5)

    found = list(numbers(log))
    print(f"{len(found)} lines, {len(found) * 101 / 2**20:.0f} MB, the longest rotation {longest:.1f} s")
    assert len(found) > written_bytes // 101
    assert found == list(range(len(found)))
    assert log.read_bytes()[:1] == b"0"


def test_so_many_archives_are_kept_and_only_their_owner_reads_them(log: Path) -> None:
    for number in range(5):
        log.write_bytes(b"%d\n" % number)
        log_rotation.rotate(log, 3, quiet)

    kept = log_rotation.archives(log)
    assert [unpacked(path) for path in kept] == [b"4\n", b"3\n", b"2\n"]
    assert [path.name for path in kept] == ["fast.log.1.gz", "fast.log.2.gz", "fast.log.3.gz"]
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert log.read_bytes() == b""


def test_ten_archives_are_in_order(log: Path) -> None:
    for number in range(12):
        log.write_bytes(b"%012d\n" % number)
        log_rotation.rotate(log, 11, quiet)

    assert list(numbers(log)) == list(range(1, 12))


def test_what_comes_while_the_writer_is_being_stopped_is_kept(log: Path) -> None:
    """The last copy is made after the writer stands still."""
    log.write_bytes(b"first\n")

    @contextlib.contextmanager
    def late() -> Iterator[None]:
        with log.open("ab") as file:
            file.write(b"last\n")
        yield

    log_rotation.rotate(log, 3, late)

    assert unpacked(log_rotation.archives(log)[0]) == b"first\nlast\n"


def test_an_end_in_the_midst_of_a_rotation_costs_no_line(log: Path) -> None:
    """A half-made archive of a worker that died is made anew; the log is cut only after its archive is whole."""
    log.write_bytes(b"one\n")
    log.with_name("fast.log.part").write_bytes(b"half")

    log_rotation.rotate(log, 3, quiet)

    assert unpacked(log_rotation.archives(log)[0]) == b"one\n"
    assert not log.with_name("fast.log.part").exists()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    """Let the disk be full as long as three archives are there; the really full one is in tests/chaos."""
    real = os.fdopen

    def fdopen(descriptor: int, mode: str) -> object:
        if len(log_rotation.archives(log)) > 2:
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", fdopen)


@pytest.fixture
def old(log: Path) -> Path:
    """Give a log with three archives."""
    for number in range(1, 4):
        log.with_name(f"fast.log.{number}.gz").write_bytes(gzip.compress(b"old %d\n" % number))
    log.write_bytes(b"new\n")
    return log


def test_on_a_full_disk_the_archive_that_goes_anyway_makes_room(old: Path, full: None) -> None:
    log_rotation.rotate(old, 3, quiet)

    assert [unpacked(path) for path in log_rotation.archives(old)] == [b"new\n", b"old 1\n", b"old 2\n"]


def test_on_a_full_disk_no_archive_goes_that_is_to_be_kept(old: Path, full: None) -> None:
    with pytest.raises(DiskFull):
        log_rotation.rotate(old, 4, quiet)

    assert [unpacked(path) for path in log_rotation.archives(old)] == [b"old 1\n", b"old 2\n", b"old 3\n"]
    assert old.read_bytes() == b"new\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_where_nothing_makes_room_the_log_is_left_as_it_was(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(os.urandom(2**17))
    monkeypatch.setattr(log_rotation, "_private", lambda _: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115 (rotate closes it)

    with pytest.raises(DiskFull):
        log_rotation.rotate(log, 3, quiet)

    assert log.stat().st_size == 2**17
    assert log_rotation.archives(log) == []
