"""Wake-ups: they reach who listens, and harm nobody."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import ledger, wakeup
from state.db import open_database
from state.errors import MlxqError
from state.job import NewJob
from state.paths import Home


@pytest.fixture
def near() -> Iterator[Home]:
    """Give a home whose path is short enough for sockets in it."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        yield Home(Path(root)).make()


def test_every_watcher_hears_an_announcement_and_the_worker_a_rousing(near: Home) -> None:
    with wakeup.worker_listener(near) as worker, wakeup.watcher(near, "-1") as one, wakeup.watcher(near, "-2") as two:
        wakeup.announce(near)
        assert (one.wait(0), two.wait(0), worker.wait(0)) == (True, True, False)
        wakeup.wake(near)
        assert (one.wait(0), worker.wait(0)) == (False, True)


def test_a_socket_that_was_deleted_is_made_again_and_one_that_is_there_is_left(near: Home) -> None:
    with wakeup.worker_listener(near) as worker:
        assert worker.ensure() is False
        worker.path.unlink()
        assert worker.ensure() is True
        wakeup.wake(near)
        assert worker.wait(1)
        assert stat.S_IMODE(worker.path.stat().st_mode) == 0o600


def test_a_job_that_is_put_in_wakes_the_worker_at_its_commit_and_no_sooner(near: Home) -> None:
    db = open_database(near)
    with wakeup.worker_listener(near) as worker:
        with db.transaction():
            ledger.enqueue(db, NewJob("pull"))
            assert not worker.wait(0)
        assert worker.wait(0)
    db.close()


def test_many_wake_ups_are_one(near: Home) -> None:
    with wakeup.worker_listener(near) as worker:
        for _ in range(5):
            wakeup.wake(near)
        assert (worker.wait(0), worker.wait(0)) == (True, False)


def test_a_dead_watchers_socket_is_forgotten(near: Home) -> None:
    gone = wakeup.watcher(near)
    gone.socket.close()
    assert gone.path.exists()

    wakeup.announce(near)

    assert not gone.path.exists()


def test_a_watcher_that_does_not_look_keeps_its_socket_and_blocks_nobody(near: Home) -> None:
    with wakeup.watcher(near) as slow:
        for _ in range(2000):
            wakeup.announce(near)
        assert slow.wait(0)


def test_with_nobody_there_a_wake_up_is_nothing(tmp_path: Path) -> None:
    wakeup.wake(Home(tmp_path))
    wakeup.announce(Home(tmp_path))


def test_a_wake_up_never_raises_as_its_commit_stands(near: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no file descriptor left, say."""

    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    with wakeup.watcher(near) as watcher:
        monkeypatch.setattr(wakeup.socket, "socket", none_left)
        wakeup.announce(near)
        assert watcher.path.exists()


def test_a_socket_is_its_owners_alone(near: Home) -> None:
    with wakeup.watcher(near) as watcher:
        assert stat.S_IMODE(watcher.path.stat().st_mode) == 0o600


def test_a_path_too_long_for_a_socket_moves_it_to_a_private_folder(tmp_path: Path) -> None:
    """Wherever $TMPDIR points: launchd gives a worker another one than a shell has."""
    home = Home(tmp_path / ("long" * 30)).make()
    with wakeup.watcher(home) as watcher:
        assert str(watcher.path).startswith(f"/tmp/mlxq-{os.getuid()}-")
        assert stat.S_IMODE(watcher.path.parent.stat().st_mode) == 0o700
        wakeup.announce(home)
        assert watcher.wait(0)
    watcher.path.parent.rmdir()


def test_a_sockets_path_is_measured_in_bytes(tmp_path: Path) -> None:
    """A disk may be called 外付け, whose letters are three bytes each; sun_path has 104 on macOS."""
    home = Home(Path("/tmp") / f"{os.getpid()}-{'外' * 20}")
    assert len(str(home.wake)) < 80

    assert str(wakeup.folder(home)).startswith(f"/tmp/mlxq-{os.getuid()}-")


def test_a_folder_that_somebody_else_made_first_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / ("long" * 30)).make()
    place = wakeup.folder(home)
    place.symlink_to(tmp_path)
    try:
        with pytest.raises(MlxqError, match="another user"):
            wakeup.watcher(home)
    finally:
        place.unlink()
