"""What the worker does for the front: installs its program, keeps its files current, and adds up what it counted."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from state import ledger, service
from state.db import Database
from state.errors import MlxqError
from state.metrics import usage
from state.metrics.usage import Usage
from state.service import ROUTED, Service
from tasks import kinds
from tasks.front import configuration, proxy
from tasks.front import plan as front
from tasks.queue import Context, job, tick
from tasks.runtime import log, runtime
from tasks.supervision import lifecycle
from tasks.system import process

LOOK_S = 2.0


@job("install_front")
def install_front(context: Context) -> dict[str, Any]:
    """Make sure LiteLLM's proxy is installed in an environment of its own.

    Returns {"litellm": its version, "installed": whether it was made for this}. Raises Offline, Damaged, DoesNotFit,
    NotFound, GatewayFailed.
    """
    result = {"litellm": front.LITELLM, "installed": False}
    if proxy.python(context.home):
        return result
    context.run_child("tasks.front.install", {"folder": str(proxy.folder(context.home))})
    return result | {"installed": True}


@tick("front", LOOK_S)
def follow() -> None:
    """Have the front know the nodes there are, and add up what it counted."""
    db = runtime.database()
    row = service.find(db, front.SERVICE)
    if row is None:
        return
    add_usage(db, runtime.home.front / "usage")
    if row.desired != "up":
        return
    if proxy.python(runtime.home) is None:  # an upgrade brought another release
        install_again(db)
    else:
        refresh(db, row)


def refresh(db: Database, row: Service) -> None:
    """Write what changed, and have a front that runs read it: it refuses no request meanwhile."""
    try:
        if configuration.write(db.home, configuration.wanted(db, db.home)):
            identity = lifecycle.running(row)
            if identity and row.state in ROUTED:
                process.send(identity, signal.SIGHUP)
    except MlxqError as problem:  # the next start says it
        log.warning("front_not_configured", cause=problem.message)


def install_again(db: Database) -> None:
    """Queue the installation of the program, and the front's replacement by it."""
    restart = kinds.new("restart", {"service": front.SERVICE, "reason": "changed"}, needs=["install_front"])
    ledger.enqueue_all(db, [kinds.new("install_front"), restart], source="watchdog")


def add_usage(db: Database, folder: Path) -> None:
    """Add to the sums what the front left in files, each once."""
    if not folder.is_dir():
        return
    for file in sorted(folder.glob("*.json")):
        rows = _rows(file)
        with db.transaction():
            usage.add(db, rows)
            file.unlink(missing_ok=True)


def _rows(file: Path) -> list[Usage]:
    """Return the sums in a file; one that is damaged has none."""
    with suppress(OSError, ValueError, TypeError):
        return [Usage(**row) for row in json.loads(file.read_bytes())]
    log.warning("front_usage_unreadable", file=str(file))
    return []
