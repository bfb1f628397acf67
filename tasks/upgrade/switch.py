"""The job that upgrades mlxq. It begins in the worker of the version before, and ends in that of the new one.

A worker that takes the job up, after it was killed or because it is the new one, reads upgrade.json and continues from
there. Until the switch nothing that runs has been touched; from then on the guard goes back when the job does not end.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NoReturn

from state import event, facts, files, service, settings
from state.db import SCHEMA_VERSION
from state.errors import Busy, Damaged, MlxqError, NotFound, Offline, UpgradeFailed
from state.job import listing
from state.paths import Home
from tasks.engines.installed import mlxq_version
from tasks.queue import Context, job, tick
from tasks.runtime import log, runtime
from tasks.supervision import services
from tasks.system.child import Cancelled, Later
from tasks.upgrade import back, installation, newer, packages, trial
from tasks.upgrade import record as records
from tasks.upgrade.packages import FoundVersion
from tasks.upgrade.record import BY_USER, Phase, Record, Version

LOOK_S = 600.0
DAY_S = 86_400.0
ROOM_S = 10.0
STEADY_S = 120.0
"""Seconds in which the jobs that a new worker enqueues at its start may end."""


@job("upgrade")
def upgrade(context: Context, to: str | None = None) -> dict[str, Any]:
    """Upgrade mlxq to the newest version, or `to` one, and go back where it does not serve.

    Returns {"version", "before", "upgraded", "backup"}. Raises UsageProblem for an installation that other tools
    upgrade, NotFound, Offline, Damaged, DoesNotFit, Busy, UpgradeFailed, and Later while a step cannot be written down
    for want of room: none is done before it is.
    """
    try:
        return _upgrade(context, to)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        raise Later("waits for room on the disk", ROOM_S) from problem


def _upgrade(context: Context, to: str | None) -> dict[str, Any]:
    record = records.read(context.home)
    if record and record.job == context.claim.id:
        try:
            return _continue(context, record)
        except Cancelled:
            _take_back_cancelled(context.home)
            raise
    if record and record.unsettled:
        raise Busy(f"The upgrade to {record.after.version} is not settled yet.", hint="mlxq jobs")
    installation.require_upgradable()
    context.report("looking for a version")
    release = packages.find(to)
    if release.version == mlxq_version() or (to is None and not newer.follows(release.version, mlxq_version())):
        return _result(mlxq_version(), mlxq_version(), upgraded=False)
    after = _prepare(context, release)
    return _switch(context, after)


def _result(version: str, before: str, *, upgraded: bool, backup: str = "") -> dict[str, Any]:
    return {"version": version, "before": before, "upgraded": upgraded, "backup": backup}


def _prepare(context: Context, release: FoundVersion) -> Version:
    """Make the new version's environment, and try it on a copy of the home; what runs is not touched.

    Raises UpgradeFailed where it does not answer, and as packages.work does.
    """
    request = {"versions": str(context.home.versions), **asdict(release)}
    python = str(context.run_child("tasks.upgrade.packages", request)["python"])
    context.report("trying it on a copy")
    try:
        tried = context.run_child("tasks.upgrade.trial", {"home": str(context.home.root)}, python)
    except MlxqError as problem:
        raise _unproven(release.version, problem) from problem
    finally:
        trial.clear(context.home)
    log.info("upgrade_tried", version=release.version, seconds=tried["seconds"])
    return Version(release.version, python, int(tried["schema"]))


def _unproven(version: str, problem: MlxqError) -> UpgradeFailed:
    return UpgradeFailed(
        f"mlxq {version} was not taken into use: {problem.message}",
        done=f"Nothing was changed; {mlxq_version()} serves.",
        hint="mlxq upgrade --check",
    )


def _switch(context: Context, after: Version) -> NoReturn:
    """Write the switch down, and hand over to the new version's worker, which continues this job."""
    home = context.home
    context.check()
    record = Record(
        phase=Phase.SWITCH,
        at=time.time(),
        job=context.claim.id,
        before=Version(mlxq_version(), sys.executable, SCHEMA_VERSION),
        after=after,
        origin=str(installation.program(home)),
        system=not files.locked(home.run / "starter.lock"),
    )
    records.write(home, record)
    _hand_over(context, record)


def _hand_over(context: Context, record: Record) -> NoReturn:
    """Let the installations of this home lead to the new version, and this process become its worker."""
    back.ensure_guard(context.home, record)
    installation.lead_to(context.home, record.after.version, record.after.python)
    runtime.hand_over([record.after.python, "-P", "-m", "mlxq", "worker"])
    _await_end(context)


def _await_end(context: Context) -> NoReturn:
    """Wait until this worker ends, and see that the guard lives; the job goes back to the queue. Raises Released."""
    while True:
        if record := records.read(context.home):
            back.ensure_guard(context.home, record)
        context.wait(1.0)


def _continue(context: Context, record: Record) -> dict[str, Any]:
    """Continue an upgrade that has begun to change what runs."""
    home, mine = context.home, mlxq_version()
    if record.phase == Phase.SWITCH and mine == record.before.version:
        return _hand_over(context, record)
    if record.phase in {Phase.SWITCH, Phase.VERIFY} and mine == record.after.version:
        record = _verify(context, record)
    if record.phase == Phase.DONE:
        _forget_others(home, record)
        return _result(record.after.version, record.before.version, upgraded=True, backup=_backup(home, record))
    if record.phase == Phase.TAKEN_BACK:
        raise _taken_back(record)
    return _await_end(context)


def _take_back_cancelled(home: Home) -> None:
    """Have a cancelled upgrade taken back that has begun to change what runs."""
    record = records.read(home)
    if record and record.phase in {Phase.SWITCH, Phase.VERIFY}:
        back.request(home, record, "it was cancelled", time.time())


def _taken_back(record: Record) -> UpgradeFailed:
    restored = f", with state.db as it was in {record.backup}" if record.backup else ""
    return UpgradeFailed(
        f"mlxq {record.after.version} was taken back: {record.reason}.",
        done=f"{record.before.version} serves again{restored}.",
        hint="mlxq logs upgrade",
    )


def _backup(home: Home, record: Record) -> str:
    """Return the copy of state.db from before the upgrade, where the schema changed."""
    copy = home.backup(record.before.schema)
    return str(copy) if record.after.schema > record.before.schema and copy.exists() else ""


def _verify(context: Context, record: Record) -> Record:
    """Replace what runs by the version before, one service after another, and look at each; return the next step.

    The gateway goes first and without a gap; an engine is left alone unless something of it changed.
    """
    home = context.home
    if record.phase == Phase.SWITCH:
        record = records.step(home, record, Phase.VERIFY, time.time())
    try:
        _await_steady(context)
        for row in sorted(service.listing(context.db), key=lambda row: row.kind == "engine"):
            if row.desired == "up":
                context.report(f"replacing {row.name}")
                services.bring_up(context, row.name, drains=True)
                record = records.step(home, record, Phase.VERIFY, time.time())
        event.record(context.db, "upgraded", version=record.after.version, before=record.before.version)
        return records.step(home, record, Phase.DONE, time.time())
    except Busy:
        return records.read(home) or record
    except MlxqError as problem:
        return back.request(home, record, problem.message.rstrip("."), time.time())


def _await_steady(context: Context) -> None:
    """Wait until the restarts that this worker enqueued at its start have ended, whatever became of them."""
    until = time.monotonic() + STEADY_S
    while time.monotonic() < until:
        kinds = ("configure", "restart", "start")
        if not any(job.live for kind in kinds for job in listing(context.db, kind=kind, limit=5)):
            return
        context.wait(0.25)


def _forget_others(home: Home, record: Record) -> None:
    """Delete the environments that neither serve nor are needed for the way back."""
    for folder in packages.unused(home.versions, (record.before, record.after)):
        shutil.rmtree(folder, ignore_errors=True)


@job("downgrade")
def downgrade(context: Context) -> dict[str, Any]:
    """Go back to the version before the latest upgrade. Returns {"version", "before", "backup"}.

    Where that upgrade changed the schema, state.db becomes the copy from before it; this job is then not in it, and
    upgrade.json says how it went. Raises NotFound, Busy.
    """
    home, record = context.home, records.read(context.home)
    if record and record.phase == Phase.TAKEN_BACK and record.reason == BY_USER:
        return way_back(record)
    record = require_way_back(home)
    if record.phase == Phase.DONE:
        back.request(home, record, BY_USER, time.time())
    return _await_end(context)


def way_back(record: Record) -> dict[str, Any]:
    """Return what an upgrade that was taken back came to."""
    return {"version": record.before.version, "before": record.after.version, "backup": record.backup}


def require_way_back(home: Home) -> Record:
    """Return the upgrade that can be taken back. Raises NotFound, Busy, Damaged."""
    record = records.read(home)
    if record is None or record.phase == Phase.TAKEN_BACK or not (is_used(record) or _is_lost(record)):
        raise NotFound("There is no upgrade to take back.", hint="mlxq upgrade --check")
    if record.phase in {Phase.SWITCH, Phase.VERIFY}:
        raise Busy(f"The upgrade to {record.after.version} is not settled yet.", hint="mlxq jobs")
    _require_before(home, record)
    return record


def is_used(record: Record) -> bool:
    """Return whether this process is of the version that the upgrade brought."""
    return mlxq_version() == record.after.version


def _is_lost(record: Record) -> bool:
    """Return whether the Python of the version that the upgrade brought went away, and this is the version before."""
    return mlxq_version() == record.before.version and not os.access(record.after.python, os.X_OK)


def _require_before(home: Home, record: Record) -> None:
    """Raise Damaged where the version before cannot run, or cannot read state.db."""
    stays = f"{record.after.version} stays in use."
    if not os.access(record.before.python, os.X_OK):
        raise Damaged(
            f"{record.before.python}, which ran mlxq {record.before.version}, is not there any more.",
            done=stays,
            hint="mlxq status",
        )
    if missing := back.lacks_backup(home, record):
        raise Damaged(
            f"{missing}, the copy of state.db from before the upgrade, is not there.", done=stays, hint="mlxq status"
        )


@job("check_upgrade")
def check_upgrade(context: Context) -> dict[str, Any]:
    """Look for a newer version of mlxq, with which a newer catalog of models comes; one is reported.

    Returns {"version", "newest"}. Raises NotFound, Offline, Damaged.
    """
    version, newest = mlxq_version(), packages.find().version
    facts.put(context.db, newer.FACT, {"version": newest, "at": context.db.now()})
    if newer.follows(newest, version):
        event.record(context.db, "mlxq_newer", subject=f"mlxq {newest}", version=newest)
    return {"version": version, "newest": newest}


@tick("look for a newer mlxq", LOOK_S)
def look() -> None:
    """Ask the package index once a day for the newest version, where the user wants that, and keep its answer."""
    db = runtime.database()
    if not settings.load(runtime.home)["check-updates"]:
        return
    last = facts.get(db, newer.FACT)
    if 0 <= db.now() - float(last.get("at", 0.0)) < DAY_S:
        return
    version = last.get("version", "")
    with suppress(NotFound, Offline, Damaged):
        version = packages.find().version
    facts.put(db, newer.FACT, {"version": version, "at": db.now()})
