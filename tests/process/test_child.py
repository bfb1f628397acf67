"""Work in a child process: what comes back, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from state.errors import DeadlinePassed, DoesNotFit, Internal
from tasks.system import child, process
from tasks.system.child import Cancelled, ChildFault, Later, run_child

CHILD = """
import os, subprocess, sys, time
from pathlib import Path
from state.errors import DoesNotFit
from tasks.system.child import answer
from tasks.system.child import Later

def work(request, report):
    if "pids" in request:
        # it takes a while to give its memory back, as an engine does
        program = "import sys, time; held = b'x' * 300_000_000; print(flush=True); time.sleep(3600)"
        other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        other.stdout.readline()
        Path(request["pids"]).write_text(f"{os.getpid()} {other.pid}")
    report({"phase": "started"})
    match request["do"]:
        case "echo":
            print("a library prints this")
            return {"said": request["words"]}
        case "fail":
            raise DoesNotFit("It needs 9 GB.", hint="mlxq prune", done="Nothing was fetched.")
        case "later":
            raise Later("the host asked for a pause", 37.0)
        case "die":
            sys.stderr.write("out of tea\\n")
            os._exit(9)
        case "wait":
            time.sleep(3600)
        case "crash":
            {"mode": "mxfp4"}["bits"]
        case "leave":
            sys.exit("nobody foresaw this")

if __name__ == "__main__":
    answer(work)
"""


@pytest.fixture(autouse=True)
def child_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the program above where a child can import it."""
    (tmp_path / "some_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def run(do: str, **more: Any) -> dict[str, Any]:
    options = {name: more.pop(name) for name in ("on_progress", "cancelled", "timeout_s") if name in more}
    return run_child("some_child", {"do": do, **more}, **options)


def gone(pid: int) -> bool:
    """Wait for the end of a process, and tell whether it came."""
    try:
        psutil.Process(pid).wait(60)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_result_and_progress_come_back_and_stray_prints_do_no_harm():
    heard: list[dict[str, Any]] = []
    assert run("echo", words="höchst\n", on_progress=heard.append) == {"said": "höchst\n"}
    assert heard == [{"phase": "started"}]


def test_what_nobody_foresaw_arrives_as_its_own_message_with_its_traceback():
    """Ten times: the lock of stdin turned some of these into SIGABRT."""
    for _ in range(10):
        with pytest.raises(ChildFault, match=r"^KeyError in some_child: 'bits'$") as caught:
            run("crash")
        assert '{"mode": "mxfp4"}["bits"]' in caught.value.traceback


def test_a_large_request_arrives_whole():
    words = "x" * 500_000
    assert run("echo", words=words) == {"said": words}


def test_an_error_in_the_child_is_the_same_error_here():
    with pytest.raises(DoesNotFit) as caught:
        run("fail")
    assert (
        caught.value.message,
        caught.value.hint,
        caught.value.done,
    ) == ("It needs 9 GB.", "mlxq prune", "Nothing was fetched.")


def test_a_child_can_ask_for_a_pause():
    with pytest.raises(Later) as caught:
        run("later")
    assert caught.value.after_s == 37.0


def test_a_child_that_dies_without_a_word_is_told_with_its_last_one():
    with pytest.raises(Internal, match="ended with code 9: out of tea"):
        run("die")


def test_cancel_ends_the_child_and_what_it_started_without_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "GRACE_S", 3600.0)
    pids, started = tmp_path / "pids", threading.Event()

    with pytest.raises(Cancelled):
        run("wait", pids=str(pids), on_progress=lambda _: started.set(), cancelled=started.is_set)
    assert [process.identify(int(pid)) for pid in pids.read_text().split()] == [None, None]


def test_a_time_limit_ends_the_child():
    with pytest.raises(DeadlinePassed):
        run("wait", timeout_s=0.5)


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path):
    pids = tmp_path / "pids"
    script = (
        "from tasks.system.child import run_child\n"
        f"request = {{'do': 'wait', 'pids': {str(pids)!r}}}\n"
        "run_child('some_child', request, on_progress=lambda _: print('up', flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"up\n"
        os.kill(parent.pid, signal.SIGKILL)
    assert all(gone(int(pid)) for pid in pids.read_text().split())
