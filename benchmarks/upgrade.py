"""What an upgrade costs: requests lost under load, seconds until a version serves wherever it is killed, the way back.

    uv run python benchmarks/upgrade.py            beside the scripted engine, without the internet
    uv run python benchmarks/upgrade.py wheel      from the wheel to the first chat: .ci/wheel, with its real packages

Real installations by uv, workers and gateways; the libraries are lent (tests/support/release.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "process")]

import test_upgrade as steps  # noqa: E402 (the crash points are the test's)
from support import release  # noqa: E402
from support.load import Load  # noqa: E402
from support.mlxq_home import until  # noqa: E402
from support.package_index import PackageIndex, running  # noqa: E402
from support.release import User  # noqa: E402

from state import secrets  # noqa: E402
from tasks.weights import builtin  # noqa: E402

LIMIT_S = 60.0


def main() -> None:
    if sys.argv[1:] == ["wheel"]:
        sys.exit(from_wheel())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = builtin.ensure(folder / "models").parent
        index = PackageIndex()
        steps.offer(index, folder / "wheels")
        with running(index):
            user = User(folder / "user", index, models)
            user.folder.mkdir()
            try:
                user.install(steps.OLD)
                user.set_up()
                measure(user)
            finally:
                user.close()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def measure(user: User) -> None:
    with Load(user.ports[0], secrets.read(user.home.secrets)[secrets.MASTER]) as load:
        print(f"{'upgrade with its first light':44} {timed(user, 'upgrade'):6.1f} s")
        print(f"{'the way back, with an older state.db':44} {timed(user, 'upgrade', '--back', '--yes'):6.1f} s")
        (user.home.root / "proven").touch()
        for moment in steps.FORWARD:
            print(f"{f'killed when {moment}':44} {killed(user, steps.FORWARD[moment], 'upgrade'):6.1f} s")
            if moment != list(steps.FORWARD)[-1]:
                steps.back_to_old(user)
        for moment in steps.BACKWARD:
            if user.worker() != steps.NEW:
                user.run("upgrade")
            seconds = killed(user, steps.BACKWARD[moment], "upgrade", "--back", "--yes")
            print(f"{f'killed when {moment}':44} {seconds:6.1f} s")
    print(f"{'requests lost / answered all the while':44} {len(load.failures)} / {load.answered}")


def timed(user: User, *words: str) -> float:
    began = time.monotonic()
    user.run(*words)
    return time.monotonic() - began


def killed(user: User, order: str, *words: str) -> float:
    """Return the seconds from the command, which is killed on the way, until a worker serves what was asked for."""
    (user.home.root / "die-at").write_text(order)
    if words == ("upgrade",):
        user.kill_worker()
    began = time.monotonic()
    user.run(*words)
    until(user.settled, LIMIT_S)
    assert not (user.home.root / "die-at").exists(), "it was killed"
    return time.monotonic() - began


def from_wheel() -> int:
    with tempfile.TemporaryDirectory() as name:
        wheel = release.build(Path(name))
        return subprocess.run([ROOT / ".ci" / "wheel", wheel], check=False).returncode


if __name__ == "__main__":
    main()
