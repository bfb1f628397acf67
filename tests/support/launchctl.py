"""A launchctl for tests on Linux that misbehaves as the original; run as a program, its state in $FAKE_LAUNCHD.

Each rule is from a recording on a real Mac:
- bootout returns before the job is gone; until then `print` still finds it (openclaw 112731, hyperfilelens 939)
- bootstrap of a label that drains: 5 (headroom 1289); of one that is loaded: 37 (openclaw 71413)
- bootout of nothing: 3; print of nothing: 113; gui/UID with nobody at the screen: 125 (home-manager 4413)
- a property list without the domain's session type, Aqua by default: 5, in the log 134 (homebrew-services 517)
- a job whose command exits at once stays loaded as "spawn scheduled" (hermes-agent 88267), with print's exit code 0
- nested blocks of print have a `state` of their own (wazuh-packages 2206)
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and pathlib take half the start of a program that is started a thousand times
    from typing import Any, NoReturn

STATE = os.environ.get("FAKE_LAUNCHD", "/nonexistent")
IO_ERROR = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors."
PRINTED = """{target} = {{
\tactive count = 1
\tpath = {path}
\ttype = LaunchAgent
\tstate = {state}

\tprogram = /bin/sh
\tendpoints = {{
\t\t"x" = {{
\t\t\tstate = active
\t\t}}
\t}}

\truns = {runs}
{pid}\tlast exit code = {exit}
}}
"""


def load() -> dict[str, Any]:
    """Return the state; jobs that have drained are gone."""
    state = {
        "gui": True,
        "user": True,
        "drain": 0.0,
        "reserved": 0.0,
        "crashes": False,
        "exit": 1,
        "jobs": {},
        "calls": [],
    }
    if os.path.exists(STATE):  # noqa: PTH110 - without pathlib
        with open(STATE) as file:  # noqa: PTH123
            state |= json.load(file)
    now = time.time()
    state["jobs"] = {name: job for name, job in state["jobs"].items() if not 0 < job["gone_at"] <= now}
    return state


def end(state: dict[str, Any], code: int, message: str = "", out: str = "") -> NoReturn:
    with open(STATE, "w") as file:  # noqa: PTH123
        json.dump(state, file)
    sys.stdout.write(out)
    sys.stderr.write(f"{message}\n" if message else "")
    sys.exit(code)


def main(verb: str, *rest: str) -> NoReturn:
    state = load()
    state["calls"].append([verb, *rest])
    kind, _, _ = rest[0].partition("/") if rest else ("", "", "")
    if kind in ("gui", "user") and not state[kind] and verb in ("print", "bootstrap", "bootout"):
        end(state, 125, "Domain does not support specified action")
    actions = {"print": show, "bootout": bootout, "bootstrap": bootstrap, "enable": lambda state, *_: end(state, 0)}
    actions[verb](state, *rest)
    raise AssertionError(verb)


def show(state: dict[str, Any], target: str) -> NoReturn:
    domain, _, label = target.rpartition("/")
    if not label.startswith("dev."):
        end(state, 0, out=f"{target} = {{\n}}\n")
    job = state["jobs"].get(target)
    if not job:
        end(state, 113, f'Could not find service "{label}" in domain for {domain}')
    pid = "" if state["crashes"] else "\tpid = 4242\n"
    word = "spawn scheduled" if state["crashes"] else "running"
    exits = str(state["exit"]) if state["crashes"] else "(never exited)"
    end(
        state, 0, out=PRINTED.format(target=target, path=job["path"], state=word, runs=job["runs"], pid=pid, exit=exits)
    )


def bootout(state: dict[str, Any], target: str) -> NoReturn:
    job = state["jobs"].get(target)
    if not job:
        end(state, 3, "Boot-out failed: 3: No such process")
    job["gone_at"] = time.time() + state["drain"] + 0.001
    state["free_at"] = job["gone_at"] + state["reserved"]
    end(state, 0)


def bootstrap(state: dict[str, Any], domain: str, path: str) -> NoReturn:
    import plistlib

    with open(path, "rb") as file:  # noqa: PTH123
        content = plistlib.load(file)
    target = f"{domain}/{content['Label']}"
    sessions = content.get("LimitLoadToSessionType", "Aqua")
    if domain.startswith("user/") and "Background" not in sessions:
        end(state, 5, IO_ERROR)
    if (job := state["jobs"].get(target)) and not job["gone_at"]:
        end(state, 37, "Bootstrap failed: 37: Operation already in progress")
    if job or state.get("free_at", 0.0) > time.time():
        end(state, 5, IO_ERROR)
    if state.get("executes"):
        run(content)
    state["jobs"][target] = {"path": path, "runs": 7 if state["crashes"] else 1, "gone_at": 0.0}
    end(state, 0)


def run(content: dict[str, Any]) -> None:
    """Run the job to its end, as launchd does at its loading; its output is appended."""
    import subprocess

    os.umask(content["Umask"])
    with open(content["StandardOutPath"], "ab") as log:  # noqa: PTH123
        environment = {"PATH": "/usr/bin:/bin"} | content.get("EnvironmentVariables", {})
        subprocess.run(content["ProgramArguments"], env=environment, stdout=log, stderr=log, check=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
