"""A worker looks every two seconds for a day while its configuration is wrong: one message, the same memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from state import settings
from state.paths import Home

LOOKS = 43_200
"""Looks of the watchdog in a day, every two seconds."""
DAY = """
import json, os, sys
import psutil, structlog
from dataclasses import replace
from support.mlxq_home import TIER
from state import service, stack
from state.paths import get_home
from tasks.runtime import runtime
from tasks.supervision import watchdog
from tasks.system import process

said = []
structlog.configure(processors=[lambda _, level, event: said.append(event) or ""], cache_logger_on_first_use=False)
home = get_home()
me = process.identify(os.getpid())
runtime.home, runtime.owner = home, process.encode(me)
db = runtime.database()
stack.replace(db, [replace(TIER, port=4999, weights=str(home.root))])
service.ensure(db, "fast", "engine", 4999)
service.set_desired(db, "fast", "up")
service.request_start(db, "fast", ["engine"], "hash", 4999)
service.apply(db, "fast", service.ServiceEvent.SPAWNED, identity=process.encode(me), started_at=db.now())
service.apply(db, "fast", service.ServiceEvent.BECAME_READY, ready_at=db.now())
watchdog._ask = lambda row: watchdog.IDLE
watchdog._send_canary = lambda *_: None
watch = watchdog.Watchdog()
watch._checked.add("fast")

def look(count):
    for _ in range(count):
        watch._next_look = 0.0
        watch.tick()
    return psutil.Process().memory_info().rss

settled = look(2_000)
grown = look(int(sys.argv[1]) - 2_000) - settled
gone = process.Identity(1, "1", me.boot)
service.update(db, "fast", identity=process.encode(gone))
look(1)
print(json.dumps({
    "said": [event.get("problem", event["event"]) for event in said],
    "grown": grown,
    "state": service.get(db, "fast").state,
    "jobs": [row["kind"] for row in db.rows("SELECT kind FROM jobs")],
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(560)
@pytest.mark.parametrize("wrong", [b"litellm-port: [\n", b"\xff\xfe", b"restart-delay: never\n"])
def test_a_day_with_a_wrong_configuration_is_one_message_and_the_same_memory(home: Home, wrong: bytes) -> None:
    home.config.write_text("max-restarts: 9\n")
    assert settings.load(home)["max-restarts"] == 9
    home.config.write_bytes(wrong)
    looks = int(os.environ.get("CONFIG_LOOKS", str(LOOKS // 10)))

    done = subprocess.run(
        [sys.executable, "-c", DAY, str(looks)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len([message for message in told["said"] if "config.yaml" in message]) == 1, told
    assert told["grown"] < 2 * 2**20, told
    assert (told["state"], told["jobs"]) == ("backoff", ["restart"]), told
