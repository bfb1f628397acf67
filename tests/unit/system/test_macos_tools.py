"""The system's own tools as macOS has them: asked by absolute path, in English, and never waited for without end."""

from __future__ import annotations

import ctypes
import shutil
import sys
import time
import tomllib
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tasks.system import file_copy, tool
from tests.support import macos
from tests.support.macos import Kernel

ROOT = Path(__file__).parents[3]


def script(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch, modules: Any = tool) -> None:
    """Lay a tool where macOS has one."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setitem(modules.MACOS_PATHS, name, str(folder / name))


def test_a_tool_is_found_without_a_path_and_speaks_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PATH that launchd kept may lack /usr/sbin, and sysctl's figures follow the locale."""
    script(tmp_path, "sysctl", 'echo "$LC_ALL $1"', monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")

    assert tool.run("sysctl", "vm.swapusage").stdout == "C vm.swapusage\n"


def test_every_tool_of_macos_has_an_absolute_path() -> None:
    assert all(Path(path).is_absolute() and Path(path).name == name for name, path in tool.MACOS_PATHS.items())


def test_a_tool_that_hangs_or_is_missing_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "lsof", "exec sleep 60", monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")

    assert tool.run("lsof", timeout_s=0.1).code == tool.TIMED_OUT
    (tmp_path / "lsof").unlink()
    assert tool.run("lsof").code == tool.MISSING


def test_who_listens_is_asked_without_a_look_at_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk that hangs would hang lsof; psutil may list one's own processes alone."""
    ports, tools = macos.load(monkeypatch, Kernel(), "tasks.system.ports", "tasks.system.tool")
    script(tmp_path, "lsof", f'echo "$@" > "{tmp_path}/asked"; echo p812', monkeypatch, tools)

    assert ports.holder(8000).pid == 812
    assert (tmp_path / "asked").read_text() == "-b -w -nP -iTCP:8000 -sTCP:LISTEN -Fp\n"
    script(tmp_path, "lsof", "exit 1", monkeypatch, tools)
    assert ports.holder(ports.spare()) is None


def test_the_pressure_of_memory_is_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, tools = macos.load(monkeypatch, Kernel(), "tasks.system.memory", "tasks.system.tool")
    script(tmp_path, "sysctl", "echo 4", monkeypatch, tools)

    assert memory._macos_pressure() == "critical"


def test_the_time_asleep_is_what_one_clock_counts_and_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONOTONIC_RAW is mach_continuous_time, UPTIME_RAW mach_absolute_time (Libc)."""
    (memory,) = macos.load(monkeypatch, Kernel(), "tasks.system.memory")
    monkeypatch.setattr(time, "CLOCK_UPTIME_RAW", 8, raising=False)
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_MONOTONIC_RAW: 5000.0, 8: 1400.0}.__getitem__)

    assert memory.asleep_s() == 3600.0


def test_sleep_is_held_off_until_the_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    (memory,) = macos.load(monkeypatch, Kernel(), "tasks.system.memory")

    assert memory.stay_awake_argv(812) == ["/usr/bin/caffeinate", "-i", "-w", "812"]


@pytest.mark.parametrize("clones", [True, False])
def test_a_copy_shares_its_blocks_where_the_disk_can(
    clones: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a link leads to, as clonefile would copy the link itself."""
    (tmp_path / "file").write_text("weights")
    (tmp_path / "link").symlink_to("file")
    asked: list[bytes] = []

    def clonefile(source: bytes, target: bytes, _flags: int) -> int:
        asked.append(source)
        return 0 if clones and shutil.copyfile(source, target) else -1

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(clonefile=clonefile))
    file_copy.copy(tmp_path / "link", tmp_path / "copy")

    assert (tmp_path / "copy").read_text() == "weights"
    assert not (tmp_path / "copy").is_symlink()
    assert [Path(path.decode()) for path in asked] == [tmp_path / "file"]


def test_the_oldest_psutil_that_is_allowed_has_what_is_used() -> None:
    """A start mark that no clock moves is from 7.1; the method is psutil's own, so that a release may take it away."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = next(text for text in project["dependencies"] if text.startswith("psutil"))

    assert tuple(map(int, requirement.removeprefix("psutil>=").split("."))) >= (7, 1)
    assert attrgetter("_proc")(psutil.Process()).create_time(monotonic=True) > 0
