"""launchd and systemd: the text of the units, and the order in which the system's tools are used."""

from __future__ import annotations

import os
import plistlib
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxq import autostart, cli
from state.errors import MlxqError, NotSetUp, UsageProblem
from state.paths import Home

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
HOME = Home(Path("/Users/ada/.mlxq"))
UNIT = autostart.Unit(
    ["/Users/ada/.local/bin/mlxq", "worker"], HOME, {"PATH": "/usr/bin:/bin", "MLXQ_HOME": "/Users/ada/.mlxq"}
)

LAUNCHCTL = """#!/bin/sh
# Misbehaves as launchctl does: bootout of an unknown service is 3, a second bootstrap is 5, no gui domain over SSH.
echo "$@" >> "$CALLS"
case "$1" in
  print) case "$2" in gui/*) [ -n "$DESKTOP" ] ;; *) [ -e "$LOADED" ] ;; esac ;;
  bootout) [ -e "$LOADED" ] && rm "$LOADED" || { echo "Boot-out failed: 3: No such process" >&2; exit 3; } ;;
  bootstrap) [ -e "$LOADED" ] && { echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }; : > "$LOADED" ;;
esac
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("worker.plist", autostart.launchd(UNIT).decode()),
        ("worker.service", autostart.systemd(UNIT)),
        ("daemon.plist", autostart.launchd(autostart.Unit(UNIT.program, HOME, UNIT.environment, True, "ada")).decode()),
    ],
)
def test_the_units_are_as_reviewed(name: str, text: str) -> None:
    assert (SNAPSHOTS / name).read_text() == text


def test_the_property_list_says_what_keeps_a_worker_alive() -> None:
    content = plistlib.loads(autostart.launchd(UNIT))

    assert content["KeepAlive"] is True
    assert content["ProcessType"] == "Interactive"
    assert content["AbandonProcessGroup"] is True
    assert content["ExitTimeOut"] > 12
    assert content["Umask"] == 0o077


def test_no_secret_and_no_password_of_a_proxy_reaches_a_unit() -> None:
    base = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_secret",
        "OPENROUTER_API_KEY": "sk-secret",
        "HTTPS_PROXY": "http://me:secret@proxy:3128",
        "http_proxy": "http://proxy:3128",
    }

    kept = autostart.environment(base, HOME)

    assert kept == {"PATH": "/bin", "http_proxy": "http://proxy:3128", "MLXQ_HOME": str(HOME.root)}


def test_odd_paths_survive_systemd_quoting(tmp_path: Path) -> None:
    odd = autostart.Unit(['/opt/a "b" %n/mlxq', "worker"], HOME, {"X": "50% \\ done"})

    text = autostart.systemd(odd)

    assert 'ExecStart="/opt/a \\"b\\" %%n/mlxq" "worker"' in text
    assert 'Environment="X=50%% \\\\ done"' in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    file = tmp_path / autostart.UNIT
    file.write_text(autostart.systemd(autostart.Unit([sys.executable, "worker"], Home(tmp_path), {"PATH": "/bin"})))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )

    assert autostart.UNIT not in done.stderr, done.stderr


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine that looks like a Mac to service.py; the file returned lists launchctl's calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("launchctl", LAUNCHCTL), ("plutil", "#!/bin/sh\nexit 0\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("LOADED", str(tmp_path / "loaded"))
    monkeypatch.setenv("DESKTOP", "1")
    return calls


def test_install_twice_and_uninstall(mac: Path, tmp_path: Path) -> None:
    unit = autostart.Unit(UNIT.program, Home(tmp_path / "h"), UNIT.environment)

    autostart.install(unit)
    autostart.install(unit)

    target = autostart.path(system=False)
    assert plistlib.loads(target.read_bytes())["Label"] == autostart.LABEL
    assert target.stat().st_mode & 0o777 == 0o600
    assert autostart.status(system=False)["loaded"] is True
    gui = f"gui/{os.getuid()}"
    assert mac.read_text().splitlines()[1:4] == [
        f"bootout {gui}/{autostart.LABEL}",
        f"enable {gui}/{autostart.LABEL}",
        f"bootstrap {gui} {target}",
    ]
    autostart.uninstall(system=False)
    assert not target.exists()
    assert autostart.uninstall(system=False) == ["Autostart is not installed."]


def test_without_a_desktop_the_user_domain_is_used(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DESKTOP")

    assert autostart.domain(system=False) == f"user/{os.getuid()}"


def test_a_tool_that_fails_is_quoted(mac: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "plutil").write_text("#!/bin/sh\necho 'bad file' >&2\nexit 1\n")

    with pytest.raises(MlxqError, match="bad file"):
        autostart.install(autostart.Unit(UNIT.program, Home(tmp_path / "h"), UNIT.environment))


def test_a_system_worker_needs_the_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 501)

    with pytest.raises(UsageProblem):
        autostart.install(autostart.Unit(UNIT.program, HOME, {}, system=True, user="ada"))


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
    mac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy")

    assert cli.run(["install", "--dry-run"]) == 0

    out, err = capsys.readouterr()
    assert plistlib.loads(out.encode())["Label"] == autostart.LABEL
    assert str(autostart.path(system=False)) in err
    assert "secret" not in out + err
    assert [each for each in (mac, tmp_path / "none", autostart.path(system=False)) if each.exists()] == []
