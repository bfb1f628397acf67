"""Jobs that start, stop, restart and drain services. Each ensures an outcome, so running one twice is harmless."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from state import desired, on_demand, safe_mode, settings, stack
from state import service as rows
from state.desired import Requested
from state.errors import EngineFailed, MlxqError, PortTaken
from state.job import get as read_job
from state.ports import BESIDE
from state.service import Kind, Service, ServiceEvent, State
from tasks.front import plan as front
from tasks.on_demand import admission, requests
from tasks.plan import gateway, health, page
from tasks.plan import restart as policy
from tasks.plan.exit_causes import Cause
from tasks.plan.safe_mode import may_start
from tasks.queue import Context, job
from tasks.supervision import engine_faults, exits, gateway_config, handover, lifecycle, probe, repairs, spec
from tasks.supervision.spec import LaunchSpec
from tasks.system import memory, process, prompt_cache
from tasks.system.background_call import BackgroundCall
from tasks.system.child import Cancelled
from tasks.system.process import Identity

LOOK_S = 0.1
STEP_S = 0.02
BROKEN_ANSWERS = 3
"""Failed first requests after which a service that answers counts as broken."""
DRAIN_S = gateway.ANSWER_SECONDS
"""How long a drain waits for running requests, in seconds."""
LONGEST_DRAIN_S = 7_000.0
"""How long one waits that no user asked for; a little less than the job may run."""
AUXILIARY: Mapping[str, Kind] = {gateway.SERVICE: "gateway", page.SERVICE: "page", front.SERVICE: "front"}
"""The services that are no engines."""
AGAIN_S = 300.0
"""When a start that took too long is tried again."""


@job("start")
def start(context: Context, service: str) -> dict[str, Any]:
    """Bring a service up, unless a newer request wants it down. Return {"service", "state", "pid"}."""
    auxiliary = service in AUXILIARY
    if not auxiliary and desired.tier_removed(context.db, service, context.claim.seq):
        return _outcome(context, service)
    _row(context, service)
    if not desired.take_effect(context.db, service, context.claim.seq):
        return _outcome(context, service)
    if not auxiliary:
        admission.make_room(context.db, context.home, stack.engine(context.db, service))
    return bring_up(context, service)


@job("restart")
def restart(context: Context, service: str, reason: str = "asked", *, purge: bool = False) -> dict[str, Any]:  # noqa: ARG001 (part of the request)
    """Ensure that a service that should run serves; end its process first unless `reason` is "gone".

    `reason`: "asked" by the user, "gone", "hung", "leaks", "escalated", "changed", "logged_out", or "outdated" or
    "upgraded", which leave one alone that runs as it would be started now; "upgraded" awaits its answers. A service
    that is not wanted stays down. What the user asked, also whether to `purge` old prompts on disk, is recorded as a
    request.
    """
    replace = reason not in {"gone", "asked", "outdated", "upgraded"}
    return bring_up(context, service, replace=replace, hung=reason == "hung", drains=reason == "upgraded")


def _replaced(context: Context, row: Service) -> bool:
    """Return whether an attempt before this one, cut short, has started the new process already."""
    asked_at = read_job(context.db, context.claim.id).created_at
    return context.claim.attempt > 1 and (row.started_at or 0.0) >= asked_at


def _restart_request(context: Context, row: Service) -> Requested | None:
    """Return the user's request for a restart that this job serves and the running process has not met yet."""
    request = desired.restart_of(context.db, row.name)
    first = context.db.value("SELECT seq FROM jobs WHERE id = ?", (context.claim.id,))  # grows when a user attaches
    return request if request.seq >= first > 0 and request.seq > row.restarted else None


@job("stop")
def stop(context: Context, service: str, *, unwanted: bool = False) -> dict[str, Any]:  # noqa: ARG001 (as the watchdog asks)
    """End the process of a service that should not run. Return what `start` returns.

    `unwanted`: the watchdog asks. A start that is requested before this job's turn comes wins in any case.
    """
    with lifecycle.hold(service, context.check):
        row = rows.find(context.db, service)
        if row is not None and row.desired == "down":
            lifecycle.stop(context.db, context.home, row)
    return _outcome(context, service)


@job("drain")
def drain(context: Context, service: str, *, unwanted: bool = False) -> dict[str, Any]:
    """End the process of a service that should not run once its last request has ended. Return what `start` returns.

    The engine refuses new requests at once, and the gateway sends them to the other tiers. After `DRAIN_S`, or when
    this job is cancelled, what is left is stopped as `stop` does. A start that is requested meanwhile ends the wait.
    `unwanted`: mlxq itself asks, as its memory is needed or it is idle, and no answer is cut for that.
    """
    limit_s = LONGEST_DRAIN_S if unwanted else DRAIN_S
    with lifecycle.hold(service, context.check):
        row = rows.find(context.db, service)
        if row is not None and row.desired == "down":
            if identity := lifecycle.drain(context.db, row):
                with suppress(Cancelled):
                    _await_last_answer(context, service, identity, limit_s)
            row = rows.get(context.db, service)
            if row.desired == "down":
                lifecycle.stop(context.db, context.home, row)
    requests.poke(context.db)
    return _outcome(context, service)


def _await_last_answer(
    context: Context, name: str, identity: Identity, limit_s: float, *, until: rows.Desired = "up"
) -> None:
    """Wait until a drained engine ends or is to be `until`, `limit_s` seconds at most. Raises Cancelled."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s and not process.wait(identity, LOOK_S):
        context.report("draining", done=int(time.monotonic() - began), unit="s")
        if rows.get(context.db, name).desired == until:
            return


def _row(context: Context, name: str) -> None:
    """Make sure the service has a row. Raises NotFound."""
    if name in AUXILIARY:
        rows.ensure(context.db, name, AUXILIARY[name], settings.load(context.home)[BESIDE[name]])
    else:
        rows.ensure(context.db, name, "engine", stack.engine(context.db, name).port)


def _outcome(context: Context, name: str) -> dict[str, Any]:
    row = rows.find(context.db, name)
    return {"service": name, "state": row.state if row else State.STOPPED, "pid": row.pid if row else None}


def bring_up(
    context: Context, name: str, *, replace: bool = False, hung: bool = False, proved: str = "", drains: bool = False
) -> dict[str, Any]:
    """Start the service until it serves, should not run any more, or no further start can help. Raises MlxqError.

    `proved`: the hash of a launch spec with which it is ready once it listens, without a token. `drains`: an engine
    that is replaced ends its answers first, and requests wait for the next one where no other engine stands in.
    """
    waits = _requests_wait(context, name) if drains else nullcontext()
    with lifecycle.hold(name, context.check), waits:
        while rows.get(context.db, name).desired == "up":
            if _start_once(context, name, replace=replace, hung=hung, proved=proved, drains=drains):
                return _outcome(context, name)
            replace, proved = False, ""
            _pause(context, name)
        lifecycle.stop(context.db, context.home, rows.get(context.db, name))
    return _outcome(context, name)


@contextmanager
def _requests_wait(context: Context, name: str) -> Generator[None]:
    """Have the gateway hold requests for an engine while it is not there, and not only where it may sleep.

    Also after a failure: an upgrade is taken back then, and the version before starts the engine.
    """
    row = rows.get(context.db, name)
    waits = (row.kind, row.desired) == ("engine", "up")
    if waits:
        on_demand.set_asleep(context.db, name, asleep=True)
    yield
    if waits and rows.get(context.db, name).desired == "up":
        on_demand.set_asleep(context.db, name, asleep=False)


def _start_once(context: Context, name: str, *, replace: bool, hung: bool, proved: str, drains: bool) -> bool:
    """Start or replace the process and wait for it; return whether the service runs as requested. Raises MlxqError."""
    newest = desired.restart_of(context.db, name).seq
    try:
        plan = _plan(context, name)
        plan = dataclasses.replace(plan, proved=plan.spec_hash == proved)
        row = exits.reconcile_row(context.db, context.home, rows.get(context.db, name))
        request = _restart_request(context, row)
        again = request is not None or (replace and not _replaced(context, row))
        if lifecycle.running(row) and (again or _outdated(row, plan)):
            _replace(context, row, plan, hung=hung, restarted=newest, drains=drains)
        _purge(context, name, request)
        _await_turn(context, name)
        serves = _try(context, name, plan, newest)
    except MlxqError as problem:
        if not context.retries(problem):
            rows.update(context.db, name, restarted=newest)  # the request was answered, with an error
        raise
    return serves and _restart_request(context, rows.get(context.db, name)) is None


def _purge(context: Context, name: str, request: Requested | None) -> None:
    """Delete the old prompts that an engine keeps on disk, if a user asked for that; it wrote them as it ended."""
    row = rows.get(context.db, name)
    if request is not None and request.value == "purge" and row.kind == "engine" and not lifecycle.running(row):
        prompt_cache.cap(prompt_cache.folder(context.home, name), 0)


def _outdated(row: Service, plan: LaunchSpec) -> bool:
    """Return whether a running process is not what is wanted now, or takes no new requests any more."""
    return row.spec_hash != plan.spec_hash or row.state == State.DRAINING


def _replace(context: Context, row: Service, plan: LaunchSpec, *, hung: bool, restarted: int, drains: bool) -> None:
    """Hand the process's sockets to a replacement where that is possible; end it where not.

    `drains`: after its last answers. Raises GatewayFailed, PortTaken; the process was left as it is.
    """
    if hung:
        rows.update(context.db, row.name, restarts=row.restarts + 1)
        running = lifecycle.running(row)
        deaf = row.kind == "gateway" or (running is not None and process.frozen(running))  # takes SIGKILL alone
        lifecycle.stop(context.db, context.home, row, 0.0 if deaf else lifecycle.HUNG_GRACE_S)
        return
    lifecycle.may_move(row, plan)
    if handover.possible(context.home, row):
        handover.replace(context, row, plan, restarted=restarted)
    else:
        if drains and (draining := lifecycle.drain(context.db, row)):
            _await_last_answer(context, row.name, draining, DRAIN_S, until="down")
        lifecycle.stop(context.db, context.home, row)


def _await_turn(context: Context, name: str) -> None:
    """Wait, after an unclean boot, until the tiers before this one have served for a while."""
    while rows.get(context.db, name).desired == "up":
        safe_modes = safe_mode.listing(context.db)
        if lifecycle.running(rows.get(context.db, name)) or may_start(
            name, rows.listing(context.db), safe_modes, context.db.now()
        ):
            return
        context.report("waits for its turn")
        context.wait(1.0)


def _plan(context: Context, name: str) -> LaunchSpec:
    """Return the launch spec; what makes it impossible is recorded for `mlxq status`, unless the service runs."""
    try:
        if name == gateway.SERVICE:
            gateway_config.write_missing(context.db, context.home)
        return spec.launch_spec(context.db, context.home, name)
    except MlxqError as problem:
        if not lifecycle.running(rows.get(context.db, name)):
            exits.give_up(context.db, name, problem)
        raise


def _try(context: Context, name: str, plan: LaunchSpec, restarted: int) -> bool:
    """Start the service unless it runs, and wait for it. Return False when it exited or should not run any more."""
    row = rows.get(context.db, name)
    if not lifecycle.running(row):
        context.report("starting")
        before = row.release
        try:
            row = lifecycle.spawn(context.db, context.home, name, plan, restarted=restarted)
        except MlxqError as problem:
            exits.give_up(context.db, name, problem)
            raise
        _follow_engine(context, name, before, plan)
    try:
        return row.state in rows.ROUTED or _await_ready(context, row, plan)
    except EngineFailed as problem:
        if _blame_engine(context, row, problem):
            return False
        _supersede(context, row, problem, again_s=AGAIN_S)
        raise
    except PortTaken as problem:
        _supersede(context, row, problem, again_s=None)
        raise


def _follow_engine(context: Context, name: str, before: str, plan: LaunchSpec) -> None:
    """Record which engine serves a tier; tell the gateway of another one, and have one that is gone installed again."""
    if plan.choice is None:
        return
    engine_faults.record_choice(context.db, name, before, plan)
    if plan.release != before:
        engine_faults.request_missing(context.db, context.home)
        if before:
            gateway_config.queue_refresh(context.db, context.home)


def _blame_engine(context: Context, row: Service, problem: EngineFailed) -> bool:
    """End an engine that runs and does not serve where another release can take its place; return whether one can."""
    cause = Cause(problem.code, problem.message, problem.hint or "", permanent=False)
    if not engine_faults.handle(context.db, context.home, row, cause, crash_loop=True):
        return False
    _end(context, row)
    exits.try_again(context.db, row.name, problem)
    return True


def _await_ready(context: Context, row: Service, plan: LaunchSpec) -> bool:
    """Wait for the first token; False when the process exited, should not run or should be another.

    Raises EngineFailed, PortTaken.
    """
    identity = lifecycle.identity(row)
    assert identity is not None, "a service that was spawned has an identity"
    began = thawed_at = time.monotonic()
    failed = 0
    check = _ask_whether_ready(context, row, plan)
    while not _exits_first(identity, check):
        spent_s = time.monotonic() - began
        context.report("loading", done=int(spent_s), unit="s")
        now = rows.get(context.db, row.name)
        if now.desired == "down" or _restart_request(context, now):
            return False
        thawed_at = _end_frozen(identity, thawed_at)
        if not check.ended:
            continue
        try:
            if check.result():
                lifecycle.mark_ready(context.db, row)
                repairs.follow(row.name, identity)
                return True
        except (probe.NotListening, probe.Silent):
            failed = 0
        except EngineFailed as problem:
            failed += 1
            if failed >= BROKEN_ANSWERS:
                message = f"{row.name} runs, and requests fail: {problem.message}"
                raise EngineFailed(message, hint=f"mlxq logs {row.name}") from problem
            process.wait(identity, LOOK_S)
        if spent_s > plan.start_limit_s:
            raise EngineFailed(
                f"{row.name} was not ready within {plan.start_limit_s:.0f} s.", hint=f"mlxq logs {row.name}"
            )
        check = _ask_whether_ready(context, row, plan)
    exits.record_exit(context.db, context.home, row.name, identity)
    return False


def _exits_first(identity: Identity, check: BackgroundCall[bool]) -> bool:
    """Wait for a check to end, `LOOK_S` seconds at most; return whether the process ended."""
    check.wait(LOOK_S)
    return process.wait(identity, 0.0)


def _ask_whether_ready(context: Context, row: Service, plan: LaunchSpec) -> BackgroundCall[bool]:
    """Ask beside this thread: the first token may take minutes, and a request to stop must not wait for it.

    Nothing tells when a port opens: it is tried each `STEP_S` seconds, for one second.
    """
    home, check = context.home, lifecycle.listed if plan.proved else lifecycle.ready

    def ask() -> bool:
        for _ in range(int(1 / STEP_S)):
            if check(home, row):
                return True
            time.sleep(STEP_S)
        return False

    return BackgroundCall(ask, f"ready-{row.name}")


def _end_frozen(identity: Identity, thawed_at: float) -> float:
    """Kill a process that stays suspended while it loads; return when it last ran, in monotonic seconds."""
    now = time.monotonic()
    if not process.frozen(identity):
        return now
    if now - thawed_at > health.patience(health.TEXT, memory.crowding()).frozen_s:
        process.send(identity, signal.SIGKILL)
    return thawed_at


def _supersede(context: Context, row: Service, problem: MlxqError, *, again_s: float | None) -> None:
    """End a service that runs and does not serve; it is tried again in `again_s` seconds, if at all.

    It is ended before its row is: a worker that dies in between leaves a stop to finish, and no process forgotten.
    """
    _end(context, row)
    exits.give_up(context.db, row.name, problem, None if again_s is None else context.db.now() + again_s)


def _end(context: Context, row: Service) -> None:
    rows.apply(context.db, row.name, ServiceEvent.STOPPING, fence=row.generation)
    if identity := lifecycle.identity(row):
        process.stop(identity, lifecycle.GRACE_S)


def _pause(context: Context, name: str) -> None:
    """Wait for the next try. Raises MlxqError when there is none worth waiting for."""
    while True:
        row = rows.get(context.db, name)
        if row.desired == "down":
            return
        if row.state in rows.GIVEN_UP:
            raise exits.as_error(row)
        left_s = policy.left_s(row.next_try_at, context.db.now())
        if left_s <= 0:
            return
        context.report("backoff", done=0, total=round(left_s, 1), unit="s")
        context.wait(min(left_s, 0.5))
