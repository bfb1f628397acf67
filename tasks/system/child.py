"""Run long work in a child process, so that cancel and time limits really stop it.

The request goes in on stdin as one JSON line; progress, the result or the error come back on stdout as JSON
lines. `run_child` is the parent's half, `answer` the child's. stdin stays open as long as the parent lives: its end
tells the child to end too.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any

from state.errors import DeadlinePassed, Internal, MlxqError, rebuild

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""
CONFIRM_S = 10.0
"""After SIGKILL; one that waits for a disk that is gone is left to the system."""
LOOK_S = 0.25
"""How often `cancelled` is asked."""
STDIN = 0
_TAIL_BYTES = 2000
_TRACEBACK_CHARS, _MESSAGE_CHARS = 16_000, 1_000

Progress = Callable[[dict[str, Any]], None]
Report = Callable[[dict[str, Any]], None]
_EVERY_S = 0.25
"""The child passes the same phase on at most once in this many seconds."""


class Cancelled(Exception):
    """The caller's `cancelled` said so; the child and all it started are gone."""


class ChildFault(Internal):
    """A fault of mlxq in a child, with the child's traceback for the log."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message, hint="mlxq logs worker")
        self.traceback = traceback


class Later(Exception):
    """The work can continue in `after_s` seconds and nothing is lost by waiting elsewhere: snooze the job."""

    def __init__(self, reason: str, after_s: float) -> None:
        self.reason = reason
        self.after_s = after_s
        super().__init__(reason)


def run_child(
    module: str,
    request: Mapping[str, Any],
    *,
    on_progress: Progress = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    timeout_s: float | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Run `python -m module` on `request` and return its result. `python`: of another version of mlxq, in an upgrade.

    Raises what the child raised of the MlxqError family or Later; Cancelled; DeadlinePassed after
    `timeout_s` seconds; Internal when the child dies without a word. The child runs in its own process
    group, which is gone when this returns or raises.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as log, _started(python, module, request, log) as process:
        for message in _messages(process, cancelled, deadline, module):
            if "progress" in message:
                on_progress(message["progress"])
            else:
                return _outcome(message)
        raise _death(module, process.wait(), log)


@contextmanager
def _started(
    python: str, module: str, request: Mapping[str, Any], log: IO[bytes]
) -> Generator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [python, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        start_new_session=True,
    )
    try:
        _send(process, request)
        yield process
    finally:
        _end(process)


def _send(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
    assert process.stdin
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it died at once; how is read from its exit and its log
        return


def _messages(
    process: subprocess.Popen[bytes], cancelled: Callable[[], bool], deadline: float | None, module: str
) -> Generator[dict[str, Any]]:
    """Yield the child's lines until it closes stdout. Raises Cancelled, DeadlinePassed."""
    assert process.stdout
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if cancelled():
                raise Cancelled
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlinePassed(f"{module} ran over its time limit.", done="It was stopped.")
            if not selector.select(LOOK_S):
                continue
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from map(json.loads, lines)


def _outcome(message: dict[str, Any]) -> dict[str, Any]:
    if "result" in message:
        return message["result"]
    if "fault" in message:
        raise ChildFault(message["fault"]["message"], message["fault"]["traceback"])
    if "later" in message:
        raise Later(message["later"]["reason"], message["later"]["after_s"])
    error = rebuild(message["error"]["code"], message["error"]["message"], message["error"]["hint"])
    error.done = message["error"]["done"]
    raise error


def _death(module: str, code: int, log: IO[bytes]) -> Internal:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = log.read().decode(errors="replace").strip().splitlines()
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return Internal(f"{module} {ending}: {lines[-1] if lines else 'it said nothing'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop whatever is left of the child's group: SIGTERM, after GRACE_S SIGKILL. Return when all of it is gone.

    What the child started is not ours to reap, and an engine takes a moment to give its memory back.
    """
    from tasks.system import process as processes

    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    members = processes.members_of_group(process.pid)
    _signal(process.pid, signal.SIGKILL)
    process.wait()
    for member in members:
        processes.wait(member, CONFIRM_S)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone; macOS says EPERM of a group of zombies
        return


def answer(work: Callable[[dict[str, Any], Report], dict[str, Any]]) -> None:
    """Run `work(request, report)` on the request on stdin and write what came of it to stdout.

    `report` may be called as often as one likes: the same phase is passed on four times a second.
    """
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not break the lines
    sys.excepthook = _teller(out)
    request = json.loads(_request_line())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _say(out, {"result": work(request, _throttled(out))})
    except Later as wait:
        _say(out, {"later": {"reason": wait.reason, "after_s": wait.after_s}})
    except MlxqError as error:
        document = {"code": error.code, "message": error.message, "hint": error.hint, "done": error.done}
        _say(out, {"error": document})


def _request_line() -> bytes:
    """Read the request. Here and below without Python's own buffer, whose lock would abort the child as it ends."""
    line = b""
    while not line.endswith(b"\n") and (data := os.read(STDIN, 65536)):
        line += data
    return line


def _teller(out: int) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return what tells the parent of an exception that nothing foresaw, as its own message, and prints it."""

    def tell(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
        module = getattr(sys.modules["__main__"].__spec__, "name", "a child")
        text = "".join(traceback.format_exception(kind, problem, trace))[-_TRACEBACK_CHARS:]
        message = f"{kind.__name__} in {module}: {problem}"[:_MESSAGE_CHARS]
        _say(out, {"fault": {"message": message, "traceback": text}})
        sys.__excepthook__(kind, problem, trace)

    return tell


def _die_with_parent() -> None:
    """End the whole group when the parent's end of stdin closes: no one waits for the answer."""
    while os.read(STDIN, 65536):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _throttled(out: int) -> Report:
    last: tuple[str, float] = ("", 0.0)
    lock = threading.Lock()

    def report(progress: dict[str, Any]) -> None:
        nonlocal last
        with lock:
            phase, now = str(progress.get("phase", "")), time.monotonic()
            if phase == last[0] and now - last[1] < _EVERY_S:
                return
            last = (phase, now)
            _say(out, {"progress": progress})

    return report


def _say(out: int, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[os.write(out, data) :]
