"""Act on an end that is the engine's own fault: another version or another engine serves the tier at its next start."""

from __future__ import annotations

from catalog.engines import entry
from state import event, ledger, stack
from state.db import Database
from state.errors import EngineFailed, NotFound
from state.metrics import tuning
from state.paths import Home
from state.service import Service
from state.stack import Engine
from tasks.engines import faults, installed, notes
from tasks.engines.choice import EngineChoice
from tasks.kinds import new
from tasks.plan.engine_faults import EXCUSED, TRIAL_S, Remedy, remedy
from tasks.plan.exit_causes import Cause
from tasks.supervision.spec import LaunchSpec

RETRY_S = 3600.0
"""Seconds until a version that could not be installed again is tried once more."""


def handle(db: Database, home: Home, row: Service, cause: Cause, *, crash_loop: bool) -> bool:
    """Do what helps against the end of an engine's process, if anything does, and record it.

    Returns whether the tier's next start is served by something else, so that it can begin at once.
    """
    if row.kind != "engine" or not row.release:
        return False
    try:
        served = stack.engine(db, row.name)
    except NotFound:  # the stack was changed meanwhile
        return False
    if served.purpose != stack.CHAT:  # one program serves it, and no other
        return False
    reason = _reason(row, cause, crash_loop=crash_loop)
    if (crash_loop or cause.permanent) and cause.code not in EXCUSED and _untuned(db, row, served, reason):
        return True
    engine, _, version = row.release.partition(" ")
    answer = remedy(
        cause.code,
        permanent=cause.permanent,
        crash_loop=crash_loop,
        own=entry(engine).environment == "own",
        trial=_on_trial(db, engine, version),
        alternative=_has_alternative(db, home, row, served),
        served=_served_before(db, row, engine),
    )
    if answer is Remedy.TAKE_BACK:
        installed.take_back(db, engine, version, reason)
        arguments = {"engine": engine, "version": version, "reason": reason}
        ledger.enqueue(db, new("rollback_engine", arguments), source="watchdog")
    elif answer is Remedy.OTHER_ENGINE:
        faults.record(db, row.release, served, reason)
        event.record(
            db, "engine_fault", service=row.name, cause=f"{row.release} does not serve {served.model}: {reason}"
        )
    elif answer is Remedy.REINSTALL:
        installed.discard(installed.folder(home, engine, version))
        ledger.enqueue(db, new("install_engine", {"engine": engine, "version": version}), source="watchdog")
    return answer is not Remedy.NONE


def _untuned(db: Database, row: Service, served: Engine, reason: str) -> bool:
    """Take back what made answers faster, as the engine ended with it; return whether there was something."""
    names = tuning.clear(db, served.source, row.release)
    for name in names:
        event.record(db, "tuning_taken_back", service=row.name, cause=f"{name} is not used any more: {reason}")
    return bool(names)


def request_missing(db: Database, home: Home) -> None:
    """Queue the installation of each version that should be here and is not, unless it failed within RETRY_S."""
    for engine, version in installed.missing(db, home).items():
        _request(db, "install_engine", engine, version)


def request_reuse(db: Database, home: Home) -> None:
    """Queue the measurement that was left for later when a version was installed, unless it failed within RETRY_S."""
    for release in installed.releases(home):
        if release.whole and release.proof.get("reused", 0.0) is None:
            _request(db, "prove_reuse", release.installation.engine, release.installation.version)


def _request(db: Database, kind: str, engine: str, version: str) -> None:
    """Queue a job of the watchdog's, unless the same one failed within RETRY_S; what the user tried does not count."""
    failed = db.value(
        "SELECT count(*) FROM jobs WHERE kind = ? AND state = 'failed' AND finished_at > ? AND source = 'watchdog'"
        " AND args ->> 'engine' = ? AND args ->> 'version' = ?",
        (kind, db.now() - RETRY_S, engine, version),
    )
    if not failed:
        ledger.enqueue(db, new(kind, {"engine": engine, "version": version}), source="watchdog")


def record_choice(db: Database, name: str, before: str, plan: LaunchSpec) -> None:
    """Write down which engine serves a tier and what is missed by it; an event where another release did before."""
    if plan.choice is None:
        return
    with db.transaction():
        notes.write(db, name, plan.choice.missed, plan.choice.hint)
        if before and before != plan.release:
            cause = f"{plan.release} in place of {before}. {_change(db, before, plan.choice)}"
            event.record(db, "engine_changed", service=name, cause=cause, before=before)


def _change(db: Database, before: str, choice: EngineChoice) -> str:
    """Return why another release serves than before, as a sentence."""
    engine, _, version = before.partition(" ")
    if reason := installed.wish(db, engine).bad.get(version):
        return f"{before} was taken back: {reason}."
    return choice.missed or f"It was chosen because {choice.reason}."


def _reason(row: Service, cause: Cause, *, crash_loop: bool) -> str:
    sentence = cause.sentence.rstrip(".")
    if cause.code == EngineFailed.code:  # it runs, and does not serve
        return sentence
    return f"{row.name} {'kept exiting' if crash_loop else 'could not start'} on it: {sentence}"


def _on_trial(db: Database, engine: str, version: str) -> bool:
    wish = installed.wish(db, engine)
    return wish.version == version and db.now() - wish.since < TRIAL_S


def _served_before(db: Database, row: Service, engine: str) -> bool:
    """Return whether the tier ran on the version that was used before, and was changed from it to the one that ended.

    The newest change of its engine says so. A model that the version before could not load was changed from it sooner.
    """
    before = db.value(
        "SELECT json_extract(data, '$.before') FROM events WHERE service = ? AND name = 'engine_changed'"
        " ORDER BY id DESC LIMIT 1",
        (row.name,),
    )
    previous = installed.wish(db, engine).previous
    return previous is not None and before == f"{engine} {previous}"


def _has_alternative(db: Database, home: Home, row: Service, served: Engine) -> bool:
    """Return whether an engine is here that is not known to fail with the model."""
    failed = {row.release, *faults.of(db, served)}
    return any(installation.name not in failed for installation in installed.used(db, home))
