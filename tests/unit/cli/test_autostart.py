"""launchd and systemd: the text of the units, and that an installation ends with a worker or changes nothing."""

from __future__ import annotations

import os
import plistlib
import pwd
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import launchctl
from support.autostart import HOME, UNIT, Mac, make_mac

from mlxq import autostart, cli
from mlxq.autostart import launchd, systemd
from mlxq.autostart.unit import Unit, environment
from mlxq.doctor import rules
from state.errors import MlxqError, NotSetUp, UsageProblem
from state.paths import Home

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"


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


def test_no_secret_and_no_password_of_a_proxy_or_an_index_reaches_a_unit() -> None:
    base = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_secret",
        "OPENROUTER_API_KEY": "sk-secret",
        "HTTPS_PROXY": "http://me:secret@proxy:3128",
        "http_proxy": "http://proxy:3128",
        "UV_INDEX": "https://me:secret@packages.example/simple",
    }
    kept = {"PATH": "/bin", "http_proxy": "http://proxy:3128", "UV_DEFAULT_INDEX": "https://packages.example/simple"}

    assert environment(base | kept, HOME) == kept | {"MLXQ_HOME": str(HOME.root)}


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


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    return make_mac(tmp_path, monkeypatch)


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
    assert plistlib.loads(out.encode())["Label"] == launchd.LABEL
    assert autostart.path(mac.unit) in err
    assert "secret" not in out + err
    assert not (tmp_path / "none").exists()
    assert mac.state() == {}
