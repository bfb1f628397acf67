"""The disk of the logs is really full: no line is lost, no half archive is left, the person is told, and it goes on."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import disk
from support.mlxq_home import Mlxq, until

from mlxq import cli
from state import secrets, settings
from state.errors import DiskFull
from state.paths import Home
from state.service import State
from tasks.supervision import probe
from tasks.system import log_rotation, process
from tasks.system.process import Identity

MB = 2**20
WRITER = """
import os, random, signal, sys
ended, pause_s = [], 0.0
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while not ended:
    left = b"%012d %s\\n" % (number, random.randbytes(43).hex().encode())
    while left:
        try:
            left = left[os.write(log, left):]
        except OSError:  # full: this line is not written yet
            pause_s = 0.001
            signal.sigtimedwait([], 0.01)
    number += 1
    if pause_s: signal.sigtimedwait([], pause_s)
    if number == 1: print("up", flush=True)
print(number, flush=True)
"""
"""Writes numbered lines that pack badly, and says at its end how many. From a full disk on it takes its time."""


@pytest.fixture
def logs(home: Home) -> Iterator[Path]:
    """Give the folder of logs on a disk of 8 MB."""
    with disk.mounted(home.logs, "8m") as place:
        yield place


@pytest.fixture
def writer(logs: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", WRITER, str(logs / "fast.log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout
            assert program.stdout.readline() == "up\n"
            yield program
        finally:
            program.kill()


def identity(program: subprocess.Popen[str]) -> Identity:
    found = process.identify(program.pid)
    assert found
    return found


def full(place: Path) -> bool:
    try:
        (place / "trial").write_bytes(b"x" * 4096)
    except OSError:
        return True
    finally:
        (place / "trial").unlink(missing_ok=True)
    return False


def numbers(log: Path) -> list[int]:
    """Give the numbers of the lines in the archives and the log, in order."""
    text = b"".join(gzip.decompress(archive.read_bytes()) for archive in reversed(log_rotation.archives(log)))
    return [int(line[:12]) for line in (text + log.read_bytes()).splitlines()]


def test_a_log_that_fills_its_disk_is_rotated_when_there_is_room(logs: Path, writer: subprocess.Popen[str]) -> None:
    """The writer fills the disk itself, and goes on meanwhile."""
    log, spare = logs / "fast.log", logs / "spare"
    spare.write_bytes(b"x" * 6 * MB)
    until(lambda: full(logs), 60)
    before = log.read_bytes()
    for _ in range(2):
        with pytest.raises(DiskFull, match=r"There is no room to rotate .*/fast\.log\."):
            log_rotation.rotate(log, 3, lambda: log_rotation.held([identity(writer)]))
    assert sorted(path.name for path in logs.iterdir()) == ["fast.log", "spare"]
    assert log.read_bytes()[: len(before)] == before
    assert not process.frozen(identity(writer))

    spare.unlink()
    assert log_rotation.rotate(log, 3, lambda: log_rotation.held([identity(writer)])) >= len(before)
    until(lambda: log.stat().st_size, 60)
    writer.send_signal(signal.SIGTERM)
    told, _ = writer.communicate(timeout=60)

    assert numbers(log) == list(range(int(told)))


@pytest.mark.slow
def test_an_engine_serves_on_a_full_disk_and_the_person_is_told(
    logs: Path, mlxq: Mlxq, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real engine, whose log cannot be written: it answers, the watchdog is calm, and later its log is rotated."""
    settings.write(mlxq.home, "log-max-size-mb", 1)
    log = mlxq.home.log("fast")
    mlxq.work()
    before = mlxq.up()
    said = log.read_bytes()
    with process.appended(log) as target:
        os.write(target, os.urandom(2 * MB))
    disk.fill(logs / "filler")

    assert cli.run(["logs", "fast", "--rotate"]) == 4
    assert "There is no room to rotate" in capsys.readouterr().err
    key = secrets.read(mlxq.home.secrets)[secrets.TIER]
    assert probe.one_token(before.port, key, "fast", 60) > 0
    assert log_rotation.archives(log) == []
    assert (mlxq.one().state, mlxq.one().identity) == (State.READY, before.identity)

    (logs / "filler").unlink()
    assert cli.run(["logs", "fast", "--rotate"]) == 0
    assert gzip.decompress(log_rotation.archives(log)[0].read_bytes()).startswith(said)
    assert mlxq.one().identity == before.identity
