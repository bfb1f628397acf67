"""What mlxq assumes about macOS alone, tried on it: launchd, Metal, power, Rosetta, the disk's free space."""

from __future__ import annotations

import ctypes
import json
import os
import plistlib
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path

from tasks.system import hardware, memory, process, tool
from tasks.system.macos import disk
from tasks.system.macos import process_table as table
from tasks.system.self_test import SLEEPER, Assumption, Trial, child

assert sys.platform == "darwin"

LABEL = "dev.mlxq.selftest"
NOTE_EXIT_STATUS = 0x04000000
"""XNU sys/event.h."""
CODE = 7
UMASK = 0o077
LAUNCHD_S = 8.0
SHOWN_S = 3.0
MODULE = "tasks.system.macos.launchd_probe"
COMPILE = """
import json, mlx.core as mx
value = mx.compile(lambda x: mx.exp(x * {number}) + {number})(mx.ones((64, 64))).sum().item()
print(json.dumps({{"device": mx.default_device().type.name, "value": value, **mx.device_info()}}, default=str))
"""


def exit_codes_are_told(_: Path) -> Trial:
    """Try that the exit code of a process is told to one that is not its parent."""
    queue = select.kqueue()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input(); raise SystemExit(7)"], stdin=subprocess.PIPE
    ) as running:
        flags = select.KQ_NOTE_EXIT | NOTE_EXIT_STATUS
        queue.control([select.kevent(running.pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, flags)], 0)
        running.communicate(b"\n", timeout=5.0)
        events = queue.control(None, 1, 5.0)
    queue.close()
    code = os.waitstatus_to_exitcode(events[0].data) if events else None
    return Trial(code == CODE, f"code {code}")


def clone_and_full_sync(scratch: Path) -> Trial:
    """Try that the disk clones files; without it a copy takes its room twice."""
    source = scratch / "source"
    source.write_bytes(b"x" * 4096)
    library = ctypes.CDLL(None, use_errno=True)
    cloned = library.clonefile(os.fsencode(source), os.fsencode(scratch / "clone"), 0) == 0
    doubles = sorted(path.name for path in scratch.iterdir() if path.name.startswith("._"))
    return Trial(cloned, f"{'clones' if cloned else 'copies'}; {len(doubles)} AppleDouble files")


def _launchd(domain: str, scratch: Path) -> Trial:
    """Run a job of launchd's once in a domain; say what it may do, then remove it and measure how long that takes."""
    log, unit = scratch / f"{domain.partition('/')[0]}.log", scratch / f"{LABEL}.plist"
    content = {
        "Label": LABEL,
        "ProgramArguments": [sys.executable, "-P", "-m", MODULE, str(scratch.parent)],
        "EnvironmentVariables": {"PYTHONPATH": os.pathsep.join(sys.path)},
        "RunAtLoad": True,
        "Umask": UMASK,
        "LimitLoadToSessionType": ["Aqua", "Background", "LoginWindow", "StandardIO", "System"],
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    unit.write_bytes(plistlib.dumps(content))
    loaded = tool.run("launchctl", "bootstrap", domain, str(unit))
    try:
        answer = _answer(log) if loaded.code == 0 else {}
    finally:
        drained = _remove(domain) if loaded.code == 0 else 0.0
    if not answer:
        return Trial(False, f"{domain}: {loaded.message if loaded.code else 'the job did not answer'}")
    works = not answer["scan"] and answer["appends"] is True and answer["umask"] == UMASK
    scan = answer["scan"] or "readable"
    return Trial(works, f"{domain}: models {scan}, {answer['files']} open files, gone after {drained:.1f} s")


def _answer(log: Path) -> dict[str, object]:
    end = time.monotonic() + LAUNCHD_S
    while time.monotonic() < end:
        if log.exists() and (text := log.read_text()).endswith("\n"):
            try:
                return json.loads(text.splitlines()[-1])
            except ValueError:
                return {}
        time.sleep(0.05)
    return {}


def _remove(domain: str) -> float:
    """Remove the job; return the seconds until launchd has forgotten it."""
    began = time.monotonic()
    tool.run("launchctl", "bootout", f"{domain}/{LABEL}")
    while tool.run("launchctl", "print", f"{domain}/{LABEL}").code == 0 and time.monotonic() - began < LAUNCHD_S:
        time.sleep(0.05)
    return time.monotonic() - began


def launchd_at_the_screen(scratch: Path) -> Trial:
    """Try a job in the desktop's domain."""
    domain = f"gui/{os.getuid()}"
    if tool.run("launchctl", "print", domain).code:
        return Trial(None, "no user at the screen")
    return _launchd(domain, scratch)


def launchd_over_ssh(scratch: Path) -> Trial:
    """Try a job in the user's own domain."""
    return _launchd(f"user/{os.getuid()}", scratch)


def caffeinate_is_seen(_: Path) -> Trial:
    """Try that the assertion against sleep is there while it is needed, and gone after."""
    argv = memory.stay_awake_argv(os.getpid(), "darwin")
    assert argv
    with child(argv) as helper:
        named = _named_in_assertions(helper.pid, present=True)
    ended = _named_in_assertions(helper.pid, present=False)
    return Trial(named and ended, "listed by pmset, and gone after")


def _named_in_assertions(pid: int, *, present: bool) -> bool:
    end = time.monotonic() + SHOWN_S
    while (f"pid {pid}(" in tool.run("pmset", "-g", "assertions").stdout) is not present:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def footprint_is_known(_: Path) -> Trial:
    """Try that the footprint of another process is known, beside its resident size."""
    with child(SLEEPER) as running:
        footprint, resident = table.resident(running.pid), table.resident_set(running.pid)
    return Trial(footprint > 0, f"footprint {footprint >> 10} KiB, resident {resident >> 10} KiB")


def metal_computes(_: Path) -> Trial:
    """Try that Metal compiles a kernel that it has never seen, and computes."""
    number = 1 + secrets.randbelow(1_000_000) / 1e9
    output = tool.run(sys.executable, "-P", "-c", COMPILE.format(number=number), timeout_s=20.0)
    info = hardware.mlx_info(output.stdout)
    if not info:
        return Trial(False, output.message.splitlines()[-1])
    limit = int(info.get("max_recommended_working_set_size") or 0)
    return Trial(
        info["device"] == "gpu", f"{info.get('device_name', info['device'])}, working set {limit / 1e9:.1f} GB"
    )


def free_space_agrees(scratch: Path) -> Trial:
    """Try that both of macOS's figures of free space are known; a purge can free what lies between them."""
    plain, important = disk.plain_free(scratch), disk.free_for_important(scratch)
    return Trial(
        plain > 0 and important is not None, f"{plain / 1e9:.1f} GB, {(important or 0) / 1e9:.1f} GB with a purge"
    )


def locale_is_english(_: Path) -> Trial:
    """Try that the system's tools print figures with a point."""
    text = tool.run("sysctl", "-n", "vm.swapusage").stdout
    return Trial("," not in text and "total = " in text, text.strip())


def runs_natively(_: Path) -> Trial:
    """Try that this is Apple silicon, and no translation."""
    translated = tool.run("sysctl", "-n", "sysctl.proc_translated").stdout.strip()
    return Trial(os.uname().machine == "arm64" and translated != "1", os.uname().machine)


def session_is_known(_: Path) -> Trial:
    """Try that the login session has an id: engines that outlive it cannot compile kernels."""
    return Trial(bool(process.table.session()), f"audit session {process.table.session() or 'unknown'}")


ASSUMPTIONS = (
    Assumption("exit codes of strangers", "an exit code is lost with its shim", exit_codes_are_told),
    Assumption("clones", "a copy of a local model takes its room twice", clone_and_full_sync),
    Assumption("launchd at the screen", "the worker cannot start, or not read the models", launchd_at_the_screen),
    Assumption("launchd over SSH", "`mlxq install` over SSH fails: use --system", launchd_over_ssh),
    Assumption("staying awake", "the Mac sleeps while a tier serves", caffeinate_is_seen),
    Assumption("memory footprint", "memory on the GPU is not counted", footprint_is_known),
    Assumption("Metal", "engines do not start, or fail at a new shape", metal_computes),
    Assumption("free space", "a download may be refused though a purge would make room", free_space_agrees),
    Assumption("locale", "swap is read as 0", locale_is_english),
    Assumption("Apple silicon", "MLX does not run", runs_natively),
    Assumption("login session", "engines that outlive a log-out are not replaced", session_is_known),
)
"""What holds on macOS alone."""
