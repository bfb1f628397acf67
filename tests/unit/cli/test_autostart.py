"""launchd and systemd: the text of the units, and that an installation ends with a worker or changes nothing."""

from __future__ import annotations

import itertools
import json
import os
import plistlib
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxq import autostart, cli, worker_process
from mlxq.autostart import launchd, systemd
from mlxq.autostart.unit import Unit, environment
from mlxq.doctor import rules
from state.errors import MlxqError, NotSetUp, UsageProblem
from state.paths import Home
from tasks.system import tool
from tests.support import launchctl

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
HOME = Home(Path("/Users/ada/.mlxq"))
UID = os.getuid()
GUI, USER = f"gui/{UID}", f"user/{UID}"
UNIT = Unit(
    ["/Users/ada/.local/bin/mlxq", "worker", "--wait"],
    HOME,
    {"PATH": "/usr/bin:/bin", "MLXQ_HOME": "/Users/ada/.mlxq"},
    user_home=Path("/Users/ada"),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("worker.plist", launchd.text(UNIT).decode()),
        ("worker.service", systemd.text(UNIT)),
        ("daemon.plist", launchd.text(replace(UNIT, system=True, user="ada")).decode()),
    ],
)
def test_the_units_are_as_reviewed(name: str, text: str) -> None:
    if os.environ.get("UPDATE_SNAPSHOTS"):
        (SNAPSHOTS / name).write_text(text)
    assert (SNAPSHOTS / name).read_text() == text


def test_the_property_list_says_what_keeps_a_worker_alive() -> None:
    content = plistlib.loads(launchd.text(UNIT))

    assert content["KeepAlive"] is True
    assert content["ProcessType"] == "Interactive"
    assert content["AbandonProcessGroup"] is True
    assert content["ExitTimeOut"] > 12
    assert content["Umask"] == 0o077
    assert {"Aqua", "Background"} <= set(content["LimitLoadToSessionType"])


def test_on_another_volume_launchd_opens_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCC refuses it, and the job would end with 78 and no log for ever."""
    monkeypatch.setattr(launchd, "_volume", lambda path: 2 if path.is_relative_to("/Volumes") else 1)
    outside = replace(UNIT, home=Home(Path("/Volumes/big/mlxq")))

    content = plistlib.loads(launchd.text(outside))

    assert content["WorkingDirectory"] == "/Users/ada"
    assert content["StandardOutPath"] == content["StandardErrorPath"] == "/Users/ada/Library/Logs/mlxq-worker.log"


def test_no_secret_and_no_password_of_a_proxy_reaches_a_unit() -> None:
    base = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_secret",
        "OPENROUTER_API_KEY": "sk-secret",
        "HTTPS_PROXY": "http://me:secret@proxy:3128",
        "http_proxy": "http://proxy:3128",
    }

    assert environment(base, HOME) == {"PATH": "/bin", "http_proxy": "http://proxy:3128", "MLXQ_HOME": str(HOME.root)}


def test_odd_paths_survive_systemd_quoting() -> None:
    odd = Unit(['/opt/a "b" %n/mlxq', "worker"], HOME, {"X": "50% \\ done"})

    text = systemd.text(odd)

    assert 'ExecStart="/opt/a \\"b\\" %%n/mlxq" "worker"' in text
    assert 'Environment="X=50%% \\\\ done"' in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    file = tmp_path / systemd.NAME
    file.write_text(systemd.text(Unit([sys.executable, "worker"], Home(tmp_path), {"PATH": "/bin"})))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )

    assert systemd.NAME not in done.stderr, done.stderr


class Mac:
    """A machine that looks like a Mac to mlxq.autostart, with a launchctl that misbehaves as the original."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "launchd.json"
        self.unit = replace(UNIT, home=Home(folder / ".mlxq"), user_home=folder, user_id=UID)

    def set(self, **values: object) -> None:
        self.file.write_text(json.dumps(self.state() | values))

    def state(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def jobs(self) -> dict[str, Any]:
        return {name: job for name, job in self.state().get("jobs", {}).items() if not job["gone_at"]}


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    tools = {
        "launchctl": f'#!/bin/sh\nexec "{sys.executable}" -S "{launchctl.__file__}" "$@"\n',
        "plutil": "#!/bin/sh\nexit 0\n",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
        monkeypatch.setitem(tool.MACOS_PATHS, name, str(tmp_path / name))
    made = Mac(tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("FAKE_LAUNCHD", str(made.file))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / ".mlxq"))
    monkeypatch.setattr(launchd, "POLL_S", 0.01)
    monkeypatch.setattr(launchd, "STARTED_S", 0.1)
    return made


LABEL = launchd.LABEL
EARLIER: Mapping[str, list[str]] = {
    "nothing": [],
    "at the screen": [GUI],
    "over SSH": [USER],
    "both": [GUI, USER],
    "as a daemon": ["system"],
}


@pytest.mark.parametrize(
    "case", itertools.product((True, False), (True, False), (0.0, 0.3), (0.0, 0.3), EARLIER), ids=str
)
def test_an_installation_ends_with_one_job_or_changes_nothing(
    mac: Mac, case: tuple[bool, bool, float, float, str]
) -> None:
    """80 combinations of who is at the screen, how long the former job drains, and what was installed before."""
    gui, user, drain, reserved, earlier = case
    jobs = {f"{domain}/{LABEL}": {"path": "x", "runs": 3, "gone_at": 0.0} for domain in EARLIER[earlier]}
    jobs = {name: job for name, job in jobs.items() if (gui or "gui" not in name) and (user or "user" not in name)}
    mac.set(gui=gui, user=user, drain=drain, reserved=reserved, jobs=jobs)
    domain = GUI if gui else USER

    if earlier == "as a daemon" or not (gui or user):
        with pytest.raises(MlxqError) as refusal:
            autostart.install(mac.unit)
        assert "--system" in str(refusal.value.hint)
        assert mac.jobs() == jobs
        assert not launchd.path(mac.unit).exists()
        return
    sentences = autostart.install(mac.unit)
    assert sentences[-1] == f"launchd keeps the worker running ({domain}/{LABEL})."
    assert mac.jobs() == {f"{domain}/{LABEL}": {"path": autostart.path(mac.unit), "runs": 1, "gone_at": 0.0}}
    status = autostart.status(mac.unit)
    assert (status.running, status.domain, status.pid) == (True, domain, 4242)
    assert rules.autostart(status).grade is rules.Grade.OK

    assert autostart.uninstall(mac.unit)[0] == f"Removed {autostart.path(mac.unit)}."
    assert mac.jobs() == {}
    assert autostart.uninstall(mac.unit) == ["Autostart is not installed."]


def test_a_job_that_does_not_end_is_said_and_kept(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchd, "GONE_S", 0.2)
    mac.set(drain=60.0, jobs={f"{GUI}/{LABEL}": {"path": "x", "runs": 1, "gone_at": 0.0}})

    with pytest.raises(MlxqError, match="has not ended the former worker") as problem:
        autostart.install(mac.unit)
    assert problem.value.hint == "mlxq install"


def test_a_label_that_stays_refused_leaves_a_worker_in_the_background(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchd, "BOOTSTRAP_S", 0.2)
    mac.set(free_at=4e9)
    started: list[Home] = []
    monkeypatch.setattr(autostart, "_stop_background", lambda _home: True)
    monkeypatch.setattr(worker_process, "ensure", started.append)

    with pytest.raises(MlxqError, match=r"did not load .* \(5\): Bootstrap failed"):
        autostart.install(mac.unit)
    assert started == [mac.unit.home]


@pytest.mark.parametrize(("code", "meaning"), [(1, "spawn scheduled, started 7 times, last exit 1"), (78, "EX_CONFIG")])
def test_a_crash_loop_is_no_running_worker(
    mac: Mac, code: int, meaning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mac.set(crashes=True, exit=code)

    assert meaning in autostart.install(mac.unit)[-1]

    status = autostart.status(mac.unit)
    assert (status.running, status.runs, status.last_exit) == (False, 7, str(code))
    finding = rules.autostart(status)
    assert (finding.grade, finding.hint) == (rules.Grade.FAIL, "mlxq logs worker")
    assert meaning in finding.text
    assert cli.run(["install", "--status"]) == 0
    assert GUI in capsys.readouterr().out


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("missing", ["state", "pid", "runs", "last exit code", ""])
def test_any_printed_job_is_read(newline: str, missing: str) -> None:
    printed = launchctl.PRINTED.format(
        target="gui/501/x", path="/x", state="running", runs=3, pid="\tpid = 9\n", exit="78: EX_CONFIG"
    )
    lines = [line for line in printed.splitlines() if not line.startswith(f"\t{missing} =")]
    job = launchd.parse("gui/501", newline.join(lines))

    assert job.state == ("" if missing == "state" else "running")
    assert job.pid == (None if missing == "pid" else 9)
    assert job.runs == (None if missing == "runs" else 3)
    assert job.exit_code == (None if missing == "last exit code" else 78)


def test_a_tool_that_fails_is_quoted(mac: Mac, tmp_path: Path) -> None:
    (tmp_path / "plutil").write_text("#!/bin/sh\necho 'bad file' >&2\nexit 1\n")

    with pytest.raises(MlxqError, match="bad file"):
        autostart.install(mac.unit)


SYSTEMCTL = """#!/bin/sh
echo "$0 $@" >> "$CALLS"
case "$*" in
  *"show --property=Version"*) [ -z "$NO_BUS" ] || { echo "Failed to connect to bus: No medium found" >&2; exit 1; } ;;
  *"show mlxq-worker"*) printf "$SHOWN" ;;
esac
"""
RUNNING = r"ActiveState=active\nSubState=running\nMainPID=4242\nNRestarts=0\nExecMainCode=0\nResult=success\n"
FAILED = (
    r"ActiveState=activating\nSubState=auto-restart\nMainPID=0\nNRestarts=11\nExecMainCode=1\nExecMainStatus=9\n"
    r"Result=exit-code\n"
)


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unit:
    for name, text in (("systemctl", SYSTEMCTL), ("loginctl", "#!/bin/sh\nexit ${LINGER:-0}\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SHOWN", RUNNING)
    monkeypatch.setattr(systemd, "STARTED_S", 0.1)
    return replace(UNIT, home=Home(tmp_path / ".mlxq"), user_home=tmp_path, user_id=os.getuid())


def test_systemd_restarts_what_ran_before(linux: Unit, tmp_path: Path) -> None:
    assert autostart.install(linux)[-1] == "systemd keeps the worker running, also while you are logged out."
    autostart.install(linux)

    calls = (tmp_path / "calls").read_text()
    assert calls.count(f"--user restart --no-block {systemd.NAME}") == 2
    assert autostart.status(linux).running
    assert autostart.uninstall(linux)[0].startswith("Removed")


def test_without_a_user_bus_nothing_is_changed(linux: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_BUS", "1")

    with pytest.raises(MlxqError, match="nothing was changed: Failed to connect") as problem:
        autostart.install(linux)
    assert problem.value.hint == "sudo mlxq install --system"
    assert not systemd.path(linux).exists()


def test_lingering_may_be_forbidden(linux: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINGER", "1")

    assert "sudo loginctl enable-linger" in autostart.install(linux)[-1]


def test_systemd_in_a_restart_loop_is_no_running_worker(linux: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOWN", FAILED)

    assert "auto-restart" in autostart.install(linux)[-1]
    finding = rules.autostart(autostart.status(linux))
    assert finding.grade is rules.Grade.FAIL
    assert "exit-code, last exit 9" in finding.text


def test_a_system_worker_needs_the_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 501)

    with pytest.raises(UsageProblem):
        autostart.install(replace(UNIT, system=True, user="ada"))


def test_under_sudo_the_worker_stays_the_persons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    person = pwd.getpwall()[-1]
    monkeypatch.setenv("SUDO_USER", person.pw_name)
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path))

    unit = autostart.describe(system=True)

    assert (unit.user, unit.environment["HOME"], unit.home.root) == (person.pw_name, person.pw_dir, tmp_path)


def test_a_system_worker_needs_a_home_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "none"))

    with pytest.raises(NotSetUp):
        autostart.describe(system=True)
    assert not (tmp_path / "none").exists()


def test_a_dry_run_shows_the_unit_and_writes_nothing(
    mac: Mac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy")

    assert cli.run(["install", "--dry-run"]) == 0

    out, err = capsys.readouterr()
    assert plistlib.loads(out.encode())["Label"] == LABEL
    assert autostart.path(mac.unit) in err
    assert "secret" not in out + err
    assert not (tmp_path / "none").exists()
    assert mac.state() == {}
