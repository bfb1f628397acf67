"""Two users of one machine: what is one's is shut to the other, and their homes do not meet. Runs as root alone."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # noqa: F401 - the other user may not read where it is installed
import pytest
from support.crashpoints import in_a_fork

from state import keys, secrets, wakeup
from state.db import open_database
from state.paths import Home
from tasks.system import ports

OTHER = 65534
"""The account that owns nothing, on Linux."""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def home() -> Iterator[Home]:
    """Return a home in a folder that everybody may enter, as /Users is, with all that a worker puts there."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        home = Home(Path(place) / "home").make()
        open_database(home).close()
        secrets.ensure(home.secrets)
        keys.create(keys.file(home), "app")
        home.log("worker").touch()
        with wakeup.watcher(home):
            yield home


def as_the_other(work: Callable[[], None]) -> int:
    """Do `work` in a process of the other user; return its wait status."""

    def become() -> None:
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)
        work()

    return in_a_fork(become)


def test_no_file_and_no_socket_of_one_opens_to_the_other(home: Home) -> None:
    """Whatever the umask was: also the folder itself is shut, so that a file with a wrong mode is not reached."""
    files = [path for path in home.root.rglob("*") if not path.is_dir()]
    assert any(path.is_socket() for path in files)
    assert {home.database, home.secrets} <= set(files)

    def try_all() -> None:
        for path in (*files, home.root, home.logs, home.run):
            with pytest.raises(PermissionError):
                os.open(path, os.O_RDONLY)
        with pytest.raises(PermissionError):
            next(home.root.iterdir())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, pytest.raises(PermissionError):
            sender.sendto(b"!", str(next(path for path in files if path.is_socket())))

    home.root.chmod(0o755)
    try:
        for path in files:
            assert path.lstat().st_mode & 0o077 == 0, path
    finally:
        home.root.chmod(0o700)
    assert as_the_other(try_all) == 0


def test_homes_whose_sockets_are_elsewhere_have_folders_of_their_own(home: Home) -> None:
    """One in which another user laid a folder first would be refused; each has its own name."""
    far = Home(home.root.parent / ("long" * 30))

    def differs() -> None:
        assert wakeup.folder(far).name != ours

    ours = wakeup.folder(far).name
    try:
        assert as_the_other(differs) == 0
    finally:
        for folder in Path("/tmp").glob(f"mlxq-{OTHER}-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()


def test_the_other_is_told_that_a_port_is_taken_and_not_by_whom() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]

        def look() -> None:
            listener.close()  # the fork's own copy
            holder = ports.holder(number)
            assert not ports.free(number)
            assert holder is not None
            assert (holder.pid, holder.name, holder.identity) == (0, "another user's program", None)

        assert as_the_other(look) == 0
