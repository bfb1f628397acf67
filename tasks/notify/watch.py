"""Notice changes: read the events, look at the disks and the cloud's cap, and enqueue a delivery for each target.

It runs in ticks of its own, beside the watchdog's. What it records is durable; a worker that starts again continues at
the event where the last one ended.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from state import event, facts, ledger, service, settings, stack
from state.db import Database
from state.errors import MlxqError
from state.metrics import cloud_spend
from state.notify import notices, targets
from state.notify.notices import Cursor
from state.notify.targets import NotifyTarget
from state.paths import Home
from state.service import ROUTED
from tasks.kinds import new
from tasks.notify import deliver
from tasks.plan import notices as plan
from tasks.queue import tick
from tasks.runtime import log, runtime
from tasks.system import bounded, free_space

LOOK_S = 2.0
SURVEY_S = 30.0
PING_S = 60.0
GROUP_S = 10.0
"""Seconds that a first change waits for others, so that they become one message."""
STRIDE = 1000
"""Events without a change after which the cursor is written, so that a new worker need not read them again."""
AGAIN_S = 6 * 3600.0
"""After a delivery that failed for good, what waits is sent again: one that is tried takes about a day to fail, and a
receiver that was away for a week gets everything all the same."""
DISK_S = 5.0
"""Seconds after which a disk that does not answer is left for the next look."""
FACT = "notify_survey"


@tick("notice changes", LOOK_S)
def notice() -> None:
    """Record what changed since the last look, and have it delivered."""
    if destinations := _targets(runtime.home):
        look(runtime.database(), destinations)


def look(db: Database, destinations: dict[str, NotifyTarget]) -> None:
    """Record new changes and enqueue their deliveries in one transaction, so that each is reported once."""
    for name in destinations.keys() - notices.begun(db):
        notices.begin(db, name)
    before = notices.cursor(db)
    last: int = db.value("SELECT coalesce(max(id), 0) FROM events")
    if before is None or last <= before.event:
        return
    with db.transaction():
        events = event.since(db, before.event, plan.WATCHED)
        changes, problems = plan.decide(events, before.problems, _tiers(db))
        if changes or problems != before.problems or last - before.event > STRIDE:
            notices.put_cursor(db, Cursor(max([last, *(change.id for change in events)]), problems))
        if changes:
            notices.record(db, changes)
            for target in destinations.values():
                if target.kind != "deadman":
                    _deliver(db, target.name)


def _deliver(db: Database, target: str) -> None:
    ledger.enqueue(db, replace(new("notify", {"target": target}), wait_s=GROUP_S), source="watchdog")


def deliver_again(db: Database, destinations: Mapping[str, NotifyTarget]) -> None:
    """Enqueue a delivery to each target that has not got everything, and whose last one failed long ago."""
    for target in destinations.values():
        if target.kind != "deadman" and notices.pending(db, target.name):
            last = notices.latest_delivery(db, target.name)
            if last and last["state"] == "failed" and db.now() - last["finished_at"] > AGAIN_S:
                _deliver(db, target.name)


def _tiers(db: Database) -> dict[str, list[str]]:
    """Return the tiers of each engine."""
    tiers: dict[str, list[str]] = {}
    for tier in stack.tiers(db):
        tiers.setdefault(tier.engine.name, []).append(tier.name)
    return tiers


def _targets(home: Home) -> dict[str, NotifyTarget]:
    """Return the targets; none where their file cannot be read, which `mlxq notify list` says."""
    with suppress(MlxqError):
        return targets.read(targets.file(home))
    return {}


@tick("survey disks", SURVEY_S)
def survey() -> None:
    """Record what no other part of mlxq records as an event: disks that fill, and the cloud's cap."""
    if destinations := _targets(runtime.home):
        survey_disks(runtime.database(), runtime.home)
        survey_cloud(runtime.database(), runtime.home)
        deliver_again(runtime.database(), destinations)


def survey_disks(db: Database, home: Home) -> None:
    """Record when a disk that mlxq writes to is nearly full, and when it has room again."""
    for folder in _folders(home):
        name = f"short {folder}"
        with suppress(OSError, MlxqError, bounded.Hangs):
            free = bounded.call(str(folder), lambda folder=folder: free_space.available(folder), DISK_S)
            short = bool(facts.get(db, FACT).get(name))
            if step := plan.disk_event(free, short=short):
                with db.transaction():
                    cause = f"{free / 1e9:.1f} GB are free"
                    event.record(db, step, subject=str(folder), cause=cause)
                    _put(db, name, value=step == "disk_short")


def _folders(home: Home) -> list[Path]:
    """Return a folder of each disk that mlxq writes to."""
    folders = [home.root]
    with suppress(MlxqError, OSError, bounded.Hangs):
        models = settings.load(home).models(home)
        if bounded.call(str(models), lambda: models.stat().st_dev, DISK_S) != home.root.stat().st_dev:
            folders.append(models)
    return folders


def survey_cloud(db: Database, home: Home) -> None:
    """Record once a day (UTC) that the cloud's cap is reached."""
    values = settings.load(home)
    cap: float = values["cloud-cap-usd"]
    spent = cloud_spend.read(cloud_spend.place(home))
    if not values["openrouter-key"] or not cap or spent.usd < cap or facts.get(db, FACT).get("cloud") == spent.day:
        return
    with db.transaction():
        cause = f"${spent.usd:.2f} of ${cap:.2f} are spent, and requests stay on this machine until midnight UTC"
        event.record(db, "cloud_cap_reached", subject="cloud", cause=cause)
        _put(db, "cloud", value=spent.day)


def _put(db: Database, name: str, *, value: object) -> None:
    facts.put(db, FACT, facts.get(db, FACT) | {name: value})


_pings: dict[str, threading.Thread] = {}
"""The latest request of each deadman target."""


@tick("deadman", PING_S)
def deadman() -> None:
    """Request the URL of each deadman target while everything that should run serves; never wait for an answer."""
    destinations = [target for target in _targets(runtime.home).values() if target.kind == "deadman"]
    if destinations and all_serve(runtime.database()):
        for target in destinations:
            request_ping(target)


def all_serve(db: Database) -> bool:
    """Return whether every service that should run serves."""
    return plan.serves([row.state for row in service.listing(db) if row.desired == "up"], ROUTED)


def request_ping(target: NotifyTarget) -> None:
    """Request a URL in a thread, unless the last request to it is still under way."""
    thread = _pings.get(target.name)
    if thread is None or not thread.is_alive():
        thread = _pings[target.name] = threading.Thread(target=_ping, args=(target,), name="deadman", daemon=True)
        thread.start()


def _ping(target: NotifyTarget) -> None:
    try:
        deliver.ping(target)
    except MlxqError as problem:
        log.warning("deadman_failed", target=target.name, error=problem.message)
