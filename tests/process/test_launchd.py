"""launchd, by a program that answers as launchctl does: an installation ends with a worker or changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.autostart import GUI, USER, Mac, make_mac

from mlxq import autostart, cli, worker_process
from mlxq.autostart import launchd
from mlxq.doctor import rules
from state.errors import MlxqError
from state.paths import Home


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    return make_mac(tmp_path, monkeypatch)


LABEL = launchd.LABEL
EARLIER: Mapping[str, list[str]] = {
    "nothing": [],
    "at the screen": [GUI],
    "over SSH": [USER],
    "both": [GUI, USER],
    "as a daemon": ["system"],
}


def distinct() -> Iterator[tuple[bool, bool, float, float, tuple[str, ...]]]:
    """Return 28 of the 80 combinations; the others differ in what is not there."""
    seen = set[object]()
    for gui, user, drain, reserved, domains in itertools.product(
        (True, False), (True, False), (0.0, 0.3), (0.0, 0.3), EARLIER.values()
    ):
        held = tuple(domain for domain in domains if {GUI: gui, USER: user}.get(domain, True))
        drains = held and "system" not in held and (gui or user)
        case = (gui, user, drain if drains else 0.0, reserved if drains else 0.0, held)
        if case not in seen:
            seen.add(case)
            yield case


@pytest.mark.parametrize("case", distinct(), ids=str)
def test_an_installation_ends_with_one_job_or_changes_nothing(
    mac: Mac, case: tuple[bool, bool, float, float, tuple[str, ...]]
) -> None:
    """Who is at the screen, how long the former job drains, and what was installed before."""
    gui, user, drain, reserved, earlier = case
    jobs = {f"{domain}/{LABEL}": {"path": "x", "runs": 3, "gone_at": 0.0} for domain in earlier}
    mac.set(gui=gui, user=user, drain=drain, reserved=reserved, jobs=jobs)
    domain = GUI if gui else USER

    if "system" in earlier or not (gui or user):
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
    monkeypatch.setattr(worker_process, "stop_any", lambda _home: True)
    monkeypatch.setattr(worker_process, "ensure", started.append)

    with pytest.raises(MlxqError, match=r"did not load .* \(5\): Bootstrap failed"):
        autostart.install(mac.unit)
    assert started == [mac.unit.home]


@pytest.mark.parametrize(("volume", "hint"), [(1, "mlxq install"), (2, "sudo mlxq install --system")])
def test_an_agent_on_another_volume_is_refused_for_good(
    mac: Mac, volume: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pearcleaner issue 550: launchd takes a property list from the volume of the homes alone."""
    monkeypatch.setattr(launchd, "BOOTSTRAP_S", 0.2)
    monkeypatch.setattr(launchd, "_volume", lambda path: volume if path.is_relative_to(mac.file.parent) else 1)
    mac.set(free_at=4e9)

    with pytest.raises(MlxqError, match=r"\(5\)") as problem:
        autostart.install(mac.unit)
    assert problem.value.hint == hint


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


def test_a_tool_that_fails_is_quoted(mac: Mac, tmp_path: Path) -> None:
    (tmp_path / "plutil").write_text("#!/bin/sh\necho 'bad file' >&2\nexit 1\n")

    with pytest.raises(MlxqError, match="bad file"):
        autostart.install(mac.unit)
