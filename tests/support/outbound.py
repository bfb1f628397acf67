"""Which addresses an engine asks for, where there is no way out: a network namespace that has loopback alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from support.engines import KEY, offline_prefix

from tasks.engines.serving import Launch

ASK = str(Path(__file__).with_name("ask_once.py"))
INSIDE = """
ip link set lo up
url=$1 key=$2 body=$3
shift 3
"$@" >&2 &
engine=$!
python3 -I "$0" "$url" "$key" "$body"
pkill -TERM -P $engine
wait $engine
"""
"""Runs an engine, asks it once, and ends it; $0 is the program that asks."""
CHAT = "/v1/chat/completions"
LOCAL = ("127.0.0.1", "::1")


def can_be_seen() -> bool:
    """Return whether this system has a network namespace for us, and strace."""
    return offline_prefix() is not None and shutil.which("strace") is not None


def calls(launch: Launch, url: str, path: str, body: dict[str, Any], folder: Path, *, key: str = KEY) -> list[str]:
    """Start an engine, ask it once, end it; return its calls of connect and sendto that do not stay on loopback.

    Raises AssertionError where it did not answer.
    """
    trace = folder / "trace"
    # With --seccomp-bpf it stops the engine at these calls, and not at each.
    words = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto", "-o", str(trace), *launch.argv]
    done = subprocess.run(
        [*(offline_prefix() or []), "/bin/sh", "-c", INSIDE, ASK, f"{url}{path}", key, json.dumps(body), *words],
        env=launch.environment(1),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout.split() == ["200"], done.stderr[-2000:]
    lines = (line for line in trace.read_text().splitlines() if "AF_INET" in line)
    return [line for line in lines if not any(address in line for address in LOCAL)]
