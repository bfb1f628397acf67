"""What mlxq assumes about a machine: tried on this one, and macOS's part on a simulated Mac."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxq import cli
from state.paths import Home
from tasks.system import ballast, free_space, hardware, self_test
from tasks.system.self_test import Assumption, Trial
from tasks.weights import model_dir
from tests.support import launchctl, macos
from tests.support.macos import CoreFoundation, Kernel


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine be late: what is seen late is seen."""
    for limit, seconds in {"LIMIT_S": 250.0, "SEEN_S": 60.0, "EXIT_LIMIT_S": 6.0, "MOST_DRIFT_S": 6.0}.items():
        monkeypatch.setattr(self_test, limit, seconds)


def test_this_machine_holds_to_all_and_nothing_is_left(tmp_path: Path) -> None:
    results = list(self_test.run(tmp_path, self_test.assumptions()))

    assert [result.assumption.name for result in results if not result.trial.holds] == []
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_hangs_or_fails_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Trial:
        raise PermissionError(1, "Operation not permitted")

    def hang(_: Path) -> Trial:
        threading.Event().wait(600)
        return Trial(True, "")

    (failed,) = self_test.run(tmp_path, [Assumption("fails", "x", fail)])
    monkeypatch.setattr(self_test, "LIMIT_S", 0.1)
    (hung,) = self_test.run(tmp_path, [Assumption("hangs", "y", hang)])

    assert failed.trial == Trial(False, "PermissionError: [Errno 1] Operation not permitted")
    assert hung.trial.holds is False


def test_the_recording_is_a_fixture_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names neither this user, nor this host, nor a path."""
    assert cli.run(["doctor", "--self-test", "--record", str(tmp_path / "machine.txt"), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["ok"] is True
    text = (tmp_path / "machine.txt").read_text()
    assert hardware.parse_fixture(text).memory_bytes == hardware.detect().memory_bytes
    assert str(Path.home()) not in text
    assert not re.search(rf"(?<![\w.]){re.escape(os.uname().nodename)}(?![\w.])", text)
    assert str(tmp_path) not in text


def test_record_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--record", "x"]) == 2
    assert "--self-test" in capsys.readouterr().err


TOOLS = {
    "launchctl": f'#!/bin/sh\nexec "{sys.executable}" -S "{launchctl.__file__}" "$@"\n',
    "pmset": '#!/bin/sh\npgrep -f "sleep 61" | sed "s/.*/   pid &(caffeinate): PreventUserIdleSystemSleep/"\n',
    "caffeinate": "#!/bin/sh\nexec sleep 61\n",
    "sysctl": '#!/bin/sh\ncase "$2" in vm.swapusage) echo "total = 2048.00M  used = 1.00M";; *) echo 0;; esac\n',
}


class SimulatedMac:
    """The trials of macOS, on tools that misbehave as the originals."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self.state = Kernel(), folder / "launchd.json"
        names = ("tasks.system.macos.self_test", "tasks.system.macos.disk", "tasks.system.memory", "tasks.system.tool")
        self.trials, self.disk, memory, tool = macos.load(monkeypatch, self.kernel, *names)
        self.trials.LAUNCHD_S = self.trials.SHOWN_S = 60.0
        for name, text in TOOLS.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
            tool.MACOS_PATHS[name] = str(folder / name)
        memory.stay_awake_argv = lambda *_: [str(folder / "caffeinate")]
        monkeypatch.setenv("FAKE_LAUNCHD", str(self.state))
        self.scratch = folder / "models" / "scratch"
        self.scratch.mkdir(parents=True)

    def set(self, **values: object) -> None:
        self.state.write_text(json.dumps(values))


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedMac:
    return SimulatedMac(tmp_path, monkeypatch)


def test_a_job_of_launchd_says_what_it_may_do_and_is_removed(mac: SimulatedMac) -> None:
    mac.set(executes=True, drain=0.1)

    trial = mac.trials.launchd_at_the_screen(mac.scratch)

    assert (trial.holds, "models readable" in trial.detail) == (True, True), trial
    jobs = json.loads(mac.state.read_text())["jobs"]
    assert [job for job in jobs.values() if not job["gone_at"]] == []


@pytest.mark.parametrize(
    ("state", "holds", "words"),
    [
        ({"gui": False}, None, "no user at the screen"),
        ({"executes": False}, False, "did not answer"),
        ({"jobs": {f"gui/{os.getuid()}/dev.mlxq.selftest": {"path": "x", "runs": 1, "gone_at": 0.0}}}, False, "37"),
    ],
)
def test_a_job_that_does_not_run_is_said(
    mac: SimulatedMac, state: dict[str, Any], holds: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mac.trials, "LAUNCHD_S", 0.3)
    mac.set(**state)

    trial = mac.trials.launchd_at_the_screen(mac.scratch)

    assert (trial.holds, words in trial.detail) == (holds, True), trial


def test_staying_awake_is_seen_and_ends(mac: SimulatedMac) -> None:
    assert mac.trials.caffeinate_is_seen(mac.scratch).holds is True


ASSERTIONS = """Assertion status system-wide:
   UserIsActive                   1
   PreventSystemSleep             1
   PreventUserIdleSystemSleep     1
Listed by owning process:
   pid 366(caffeinate): [0x00000025000180ba] 03:16:41 PreventUserIdleSystemSleep named: "caffeinate command-line tool"
\tDetails: caffeinate asserting on behalf of 'sh' (pid 365)
\tTimeout will fire in 60198 secs Action=TimeoutActionRelease
   pid 366(caffeinate): [0x00000025000780bc] 03:16:41 PreventSystemSleep named: "caffeinate command-line tool"
"""
"""As KeepingYouAwake issue 92 shows them: one helper twice, and the program that it acts for."""


@pytest.mark.parametrize(("pid", "listed"), [(366, True), (365, False), (36, False), (66, False)])
def test_a_recorded_assertion_is_its_helpers(mac: SimulatedMac, pid: int, listed: bool) -> None:
    pmset = Path(sys.modules["tasks.system.tool"].MACOS_PATHS["pmset"])
    pmset.with_suffix(".txt").write_text(ASSERTIONS)
    pmset.write_text(f'#!/bin/sh\ncat "{pmset}.txt"\n')

    assert mac.trials._named_in_assertions(pid, present=listed)


def test_blocks_of_apfs_are_counted_in_fragments(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borg issue 4289: f_bsize is 1 MiB, the size of a transfer, and would make 13 TB of 50 GB."""
    recorded = SimpleNamespace(f_bsize=1 << 20, f_frsize=4096, f_blocks=61202533, f_bfree=13309382, f_bavail=12351802)
    monkeypatch.setattr(os, "statvfs", lambda _path: recorded)
    monkeypatch.setattr(mac.disk, "_core_foundation", lambda: CoreFoundation({}))
    monkeypatch.setattr(mac.disk, "_key", lambda _library, name: name)

    assert free_space.available(mac.scratch) == 12351802 * 4096


def test_both_figures_of_free_space_are_read_and_released(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        "kCFURLVolumeAvailableCapacityKey": 5 << 40,
        "kCFURLVolumeAvailableCapacityForImportantUsageKey": 6 << 40,
    }
    library = CoreFoundation(keys)
    monkeypatch.setattr(mac.disk, "_core_foundation", lambda: library)
    monkeypatch.setattr(mac.disk, "_key", lambda _library, name: name)

    assert mac.disk.plain_free(mac.scratch) == 5 << 40  # beyond what statvfs of Python 3.12 can tell
    assert mac.disk.free_for_important(mac.scratch) == 6 << 40
    assert library.released == 4
    library.capacities.clear()
    assert mac.disk.free_for_important(mac.scratch) is None
    assert mac.disk.plain_free(mac.scratch) > 0
    assert mac.trials.free_space_agrees(mac.scratch).holds is False


def test_no_backup_has_the_models_and_the_reserve(
    mac: SimulatedMac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was there before mlxq may hold what a user made: that one stays in."""
    library = CoreFoundation({})
    monkeypatch.setattr(mac.disk, "_core_foundation", lambda: library)
    monkeypatch.setattr(mac.disk, "_key", lambda _library, name: name)
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)
    home, ours, theirs = Home(tmp_path / "home"), tmp_path / "ours", tmp_path / "theirs"
    home.root.mkdir()
    theirs.mkdir()

    ballast.lay_ballast(home)
    for folder in (ours, theirs):
        model_dir._mark(model_dir.ModelDir(folder, None))

    part = home.ballast.with_suffix(".part")
    assert [(os.fsdecode(path), key, value) for path, key, value in library.noted] == [
        (str(path), "kCFURLIsExcludedFromBackupKey", "kCFBooleanTrue") for path in (part, ours)
    ]
    assert library.released == 2
    library.takes_notes = False
    assert mac.disk.exclude_from_backup(ours) is False


def test_what_a_purge_would_free_counts_as_free(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac.disk, "plain_free", lambda _folder: 10 << 30)
    for purgeable, expected in ((None, 10 << 30), (90 << 30, 90 << 30)):
        monkeypatch.setattr(mac.disk, "free_for_important", lambda _folder, value=purgeable: value)
        assert free_space.available(mac.scratch) == expected


def test_figures_of_the_system(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mac.trials.locale_is_english(mac.scratch).holds is True
    assert mac.trials.session_is_known(mac.scratch).detail == "audit session 100007"
    monkeypatch.setattr(mac.trials.os, "uname", lambda: SimpleNamespace(machine="arm64"), raising=False)
    assert mac.trials.runs_natively(mac.scratch).holds is True


def test_metal_is_asked_for_a_kernel_it_has_never_seen(mac: SimulatedMac) -> None:
    """The program runs on MLX here, where the device is a CPU."""
    trial = mac.trials.metal_computes(mac.scratch)

    assert (trial.holds, trial.detail.endswith("GB")) == (False, True), trial


def test_a_clone_is_tried(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(source: bytes, target: bytes, _flags: int) -> int:
        Path(os.fsdecode(target)).write_bytes(Path(os.fsdecode(source)).read_bytes())
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(clonefile=clone))
    (mac.scratch / "._source").touch()

    assert mac.trials.clone_and_full_sync(mac.scratch).detail == "clones; 1 AppleDouble files"


class TellingQueue:
    """A kqueue that tells the wait status of the process it was asked about, as NOTE_EXITSTATUS does."""

    def __init__(self, code: int) -> None:
        self.code = code

    def control(self, changes: list[Any] | None, _count: int, _timeout: float | None = 0) -> list[Any]:
        return [] if changes else [SimpleNamespace(data=self.code << 8)]

    def close(self) -> None: ...


@pytest.mark.parametrize(("code", "holds"), [(7, True), (0, False)])
def test_the_exit_code_of_a_stranger_is_read(mac: SimulatedMac, code: int, holds: bool) -> None:
    mac.trials.select.kqueue = lambda: TellingQueue(code)

    assert mac.trials.exit_codes_are_told(mac.scratch).holds is holds


def test_the_footprint_of_a_child_is_read(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac.trials.table, "resident", lambda _pid: 5 << 20)
    monkeypatch.setattr(mac.trials.table, "resident_set", lambda _pid: 3 << 20)

    assert mac.trials.footprint_is_known(mac.scratch) == mac.trials.Trial(True, "footprint 5120 KiB, resident 3072 KiB")


def test_caffeinate_that_does_not_show_is_said(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac.trials, "SHOWN_S", 0.2)
    pmset = sys.modules["tasks.system.tool"].MACOS_PATHS["pmset"]
    Path(pmset).write_text("#!/bin/sh\nexit 0\n")

    assert mac.trials.caffeinate_is_seen(mac.scratch).holds is False


@pytest.mark.parametrize("text", ["", "no JSON\n"])
def test_an_answer_of_launchd_that_is_none_is_empty(
    mac: SimulatedMac, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mac.trials, "LAUNCHD_S", 0.1)
    (mac.scratch / "gui.log").write_text(text)

    assert mac.trials._answer(mac.scratch / "gui.log") == {}


def test_mlx_that_does_not_start_is_quoted(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac.trials, "COMPILE", "raise SystemExit('no Metal')")

    assert mac.trials.metal_computes(mac.scratch).detail == "no Metal"


def test_the_probe_says_what_it_may_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tasks.system.macos import launchd_probe

    launchd_probe.main(str(tmp_path))
    readable = json.loads(capsys.readouterr().out)
    launchd_probe.main(str(tmp_path / "none"))

    assert (readable["scan"], json.loads(capsys.readouterr().out)["scan"]) == ("", "No such file or directory")


def test_core_foundation_is_loaded_by_its_path(mac: SimulatedMac, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(path: str) -> Any:
        loaded.append(path)
        return SimpleNamespace(CFURLCreateFromFileSystemRepresentation=SimpleNamespace())

    monkeypatch.setattr(ctypes, "CDLL", load)
    library = mac.disk._core_foundation()

    assert loaded == ["/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation"]
    assert library.CFURLCreateFromFileSystemRepresentation.restype is ctypes.c_void_p


def test_all_trials_of_macos_run_together(mac: SimulatedMac, tmp_path: Path) -> None:
    """None raises what the runner does not know, whatever this machine lacks."""
    mac.set(executes=True)
    shown = list(self_test.run(tmp_path, mac.trials.ASSUMPTIONS))

    assert [result.assumption.name for result in shown] == [trial.name for trial in mac.trials.ASSUMPTIONS]
