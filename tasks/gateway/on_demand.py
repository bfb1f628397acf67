"""Which models and engines sleep, as the gateway knows it; a request for one is held until it is loaded.

state.db is read in a thread, at once when something changed and each LOOK_S seconds, and what was used is written
there: no request waits for the database unless its model sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from state import job, on_demand, service, settings, stack, wakeup
from state.db import Database
from state.errors import DoesNotFit, MlxqError, NotFound, NotSetUp, OtherSchema
from state.job import LIVE, Job, JobState
from state.keys import Key
from state.paths import Home
from state.service import GIVEN_UP, ROUTED, Service
from tasks.gateway import errors
from tasks.gateway.errors import Refusal
from tasks.gateway.routes import RetrievalRoute, Route, Routes, on_demand_retrieval, on_demand_route
from tasks.gateway.state_thread import in_thread, opened
from tasks.on_demand import requests
from tasks.upgrade import record as records

LOOK_S = 1.0
REMEMBERED_S = 60.0
"""How long a repo that there is not, or that is too large, is refused without asking the Hub again."""
REMEMBERED = 64
_PULLED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
"""What may be the name of a model in the catalog, or of a repo."""
_FINAL = frozenset({404, 507})
"""Statuses of a download that would not end otherwise if it was tried again at once."""

log = logging.getLogger("mlxq.gateway")


@dataclass(frozen=True)
class SleepingModel:
    """A model on this disk that no tier serves."""

    model: str
    names: tuple[str, ...]
    engine: str
    purpose: str
    context: int
    vision: bool = False
    route: Route | None = None
    """None until its first start."""
    retrieval: RetrievalRoute | None = None
    """The same of one that makes vectors or ranks documents."""


@dataclass(frozen=True)
class ModelStates:
    """What is known at one moment."""

    models: Mapping[str, SleepingModel] = field(default_factory=dict[str, SleepingModel])
    """By each of their names, folded."""
    tiers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of models that an engine of the stack serves, folded -> the tier or purpose."""
    shown: tuple[str, ...] = ()
    """The names of `models` and `tiers`, for the list."""
    states: Mapping[str, str] = field(default_factory=dict[str, str])
    """Engine -> serving, loading, sleeping or stopped."""
    may_sleep: frozenset[str] = frozenset()
    """Engines that are stopped when they are idle: of the stack those that a setting names, and of all `models`."""
    replaced: frozenset[str] = frozenset()
    """Engines that are ended for others in their place, as an upgrade does, and do not serve now."""
    jobs: Mapping[str, Job] = field(default_factory=dict[str, Job])
    """Engine or name of a model -> the job that loads or downloads it, of those that requests wait for."""


class OnDemand:
    """What the gateway knows of models that sleep."""

    def __init__(self, home: Home, routes: Routes, backend: str, allow: Callable[[set[int]], None]) -> None:
        """`allow`: lets this process connect to these ports of engines, and to no others of engines on demand."""
        self.home = home
        self._routes = routes
        self.backend = backend
        self._allow = allow
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._uses: dict[str, tuple[float, float | None]] = {}
        self._awaited: dict[str, int] = {}
        self._waiting: Counter[str] = Counter()
        self._refused: dict[tuple[str, object], tuple[float, Refusal]] = {}
        self._changes: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = ""
        self.known = ModelStates()

    # What is asked of it

    def find(self, name: str) -> SleepingModel | None:
        """Return the model of a name that no tier has."""
        return self.known.models.get(on_demand.folded(name))

    def names_for(self, purpose: str, key: Key) -> list[str]:
        """Return the models on this disk that are for a purpose and that a key may ask for."""
        models = {model.model: model for model in self.known.models.values() if model.purpose == purpose}
        return sorted(name for name, model in models.items() if key.may_ask(*model.names))

    def tier(self, name: str) -> str | None:
        """Return the tier whose engine serves the weights of this name."""
        return self.known.tiers.get(on_demand.folded(name))

    def state(self, engine: str) -> str:
        """Return whether an engine is serving, loading, sleeping or stopped; one that nothing is known of serves."""
        return self.known.states.get(engine, "serving")

    def tracks(self, engine: str) -> bool:
        """Return whether an engine may be asleep when it is asked."""
        return engine in self.known.may_sleep

    def use(self, engine: str, keep_s: float | None = None) -> None:
        """Record that a request to an engine begins or ends, and how long that says it is to be kept."""
        with self._lock:
            before = self._uses.get(engine, (0.0, None))
            self._uses[engine] = time.time(), before[1] if keep_s is None else keep_s

    @asynccontextmanager
    async def used(self, engine: str, keep_s: float | None) -> AsyncGenerator[None]:
        """Record the use of an engine, as a request begins and as it ends, where it may be stopped for being idle."""
        if not self.tracks(engine):
            yield
            return
        self.use(engine)
        try:
            yield
        finally:
            self.use(engine, keep_s if self.state(engine) == "serving" else None)

    def patience(self) -> float:
        """Return until when a request that comes now waits for its model, in monotonic seconds."""
        return time.monotonic() + settings.load(self.home)["load-timeout"]

    async def awake(self, engine: str, *, background: bool, until: float) -> Refusal | None:
        """Have an engine loaded; return None once it serves, or why it does not. `until`: monotonic seconds."""
        return await self._await(
            engine,
            lambda: self.state(engine) in {"serving", "stopped"},
            lambda db: requests.load(db, engine, background=background),
            until,
        )

    async def replaced(self, engine: str, since: ModelStates, until: float) -> bool:
        """Return whether an engine that refused is being replaced, and to be asked again: at a change, or after LOOK_S.

        `since`: what was known when it was asked. `until`: monotonic seconds. It is asked again also where nothing is
        known any more: a gateway of a version that was taken back cannot read the restored state.db.
        """
        await self.look()
        if engine not in self.known.replaced | since.replaced or time.monotonic() >= until:
            return False
        if engine in self.known.replaced:
            with self._waits(engine) as changed:
                await _ring(changed, min(LOOK_S, until - time.monotonic()))
        return True

    def may_pull(self, name: str) -> bool:
        """Return whether a model that is not on this disk is downloaded when it is asked for."""
        return settings.load(self.home)["pull-on-demand"] != settings.OFF and bool(_PULLED.fullmatch(name))

    async def pulled(self, name: str, until: float) -> Refusal | None:
        """Have a model downloaded; return None once it is known, or why it is not. `until`: monotonic seconds."""

        def is_known() -> bool:
            return self.find(name) is not None or self.tier(name) is not None

        subject = on_demand.folded(name), settings.load(self.home)["pull-on-demand"]
        at, refusal = self._refused.get(subject, (0.0, None))
        if refusal is not None and time.monotonic() - at < REMEMBERED_S:
            return refusal
        refusal = await self._await(name, is_known, _once(name), until)
        if refusal is not None and refusal.status in _FINAL:
            self._remember(subject, refusal)
        return refusal

    def _remember(self, subject: tuple[str, object], refusal: Refusal) -> None:
        self._refused[subject] = time.monotonic(), refusal
        while len(self._refused) > REMEMBERED:
            del self._refused[next(iter(self._refused))]

    async def _await(
        self, subject: str, is_done: Callable[[], bool], ask: Callable[[Database], int], until: float
    ) -> Refusal | None:
        """Wait for what a job brings about, which `ask` enqueues; return why it did not come."""
        if is_done():
            return None
        with self._waits(subject) as changed:
            return await self._follow(subject, changed, is_done, ask, until)

    @contextmanager
    def _waits(self, subject: str) -> Generator[asyncio.Event]:
        """Count who waits for a subject, and yield what is set at each change; its job is forgotten after the last."""
        changed = asyncio.Event()
        self._changes.add(changed)
        self._waiting[subject] += 1
        try:
            yield changed
        finally:
            self._changes.discard(changed)
            self._waiting[subject] -= 1
            if not self._waiting[subject]:
                self._forget(subject)

    def _forget(self, subject: str) -> None:
        del self._waiting[subject]
        with self._lock:
            self._awaited.pop(subject, None)

    async def _follow(
        self,
        subject: str,
        changed: asyncio.Event,
        is_done: Callable[[], bool],
        ask: Callable[[Database], int],
        until: float,
    ) -> Refusal | None:
        number: int | None = None
        while True:
            changed.clear()
            if is_done():
                return None
            job_row = self.known.jobs.get(subject)
            if job_row is not None and job_row.id == number and job_row.state not in LIVE:
                if job_row.state != JobState.SUCCEEDED:
                    return _failed(self._shown(subject), job_row)
                number = None
                await self.look()
                continue
            try:
                number = number or await self._ask(subject, ask)
            except NotFound as problem:
                return _no_model(problem.message)
            except DoesNotFit as problem:
                return _too_large(problem.message)
            except OtherSchema as problem:
                log.warning("%s waits: %s", self._shown(subject), problem.message)
            except MlxqError as problem:
                return errors.state_unavailable(problem)
            await _ring(changed, min(LOOK_S, until - time.monotonic()))
            if time.monotonic() >= until and not is_done():
                limit_s: int = settings.load(self.home)["load-timeout"]
                return _late(self._shown(subject), self.known.jobs.get(subject), limit_s)

    def _shown(self, subject: str) -> str:
        """Return the name of an engine's model; a tier's engine, and a model that is downloaded, have their own."""
        models = self.known.models.values()
        return next((model.model for model in models if model.engine == subject), subject)

    async def look(self) -> None:
        """Read what is known now, also where nothing told that it changed."""
        await asyncio.to_thread(self._look_once)

    async def _ask(self, subject: str, ask: Callable[[Database], int]) -> int:
        """Enqueue a job, or attach to the one that is there; return its id. Raises MlxqError."""
        number = await in_thread(self.home, ask)
        with self._lock:
            self._awaited[subject] = number
        await self.look()
        return number

    # The thread

    def start(self) -> None:
        """Begin to look. Called inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._look_once()
        self._thread = threading.Thread(target=self._run, name="on-demand", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is not written yet, and end the thread."""
        self._over.set()
        self._write_uses()

    def _run(self) -> None:
        """Look at every change until the end. Where no socket can be had, each LOOK_S seconds."""
        try:
            listener = wakeup.watcher(self.home, "-gateway")
        except (OSError, MlxqError) as problem:
            log.warning("state.db is looked at each %g s: %s", LOOK_S, problem)
            while not self._over.wait(LOOK_S):
                self._step()
            return
        with listener:
            while not self._over.is_set():
                listener.wait(LOOK_S)
                with suppress(OSError, MlxqError):
                    listener.ensure()
                self._step()

    def _step(self) -> None:
        self._write_uses()
        self._look_once()

    def _look_once(self) -> None:
        with self._looking:
            self._look()

    def _look(self) -> None:
        try:
            with opened(self.home, reads=True) as db, db.reading():
                states = self._read(db)
        except NotSetUp:
            return  # a gateway may run before there is a database
        except (sqlite3.Error, MlxqError) as problem:
            self._say(str(problem))
            return
        self._said = ""
        changed = states != self.known
        self._routes.on_demand.update(
            {model.model: model.route for model in states.models.values() if model.route is not None}
        )
        self.known = states
        if changed and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._tell)

    def _say(self, problem: str) -> None:
        """Log why state.db cannot be read, once and not at each look."""
        if problem != self._said:
            log.warning("state.db could not be read: %s", problem)
        self._said = problem

    def _tell(self) -> None:
        for event in self._changes:
            event.set()

    def _write_uses(self) -> None:
        with self._lock:
            uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            with opened(self.home) as db, db.transaction():
                for engine, (at, keep_s) in uses.items():
                    on_demand.used(db, engine, at, keep_s)
        except (sqlite3.Error, MlxqError) as problem:
            log.warning("the use of %s could not be written: %s", ", ".join(uses), problem)

    def _read(self, db: Database) -> ModelStates:
        rows = {row.name: row for row in service.listing(db)}
        uses = on_demand.residencies(db)
        engines = stack.engines(db)
        serving = {engine.weights: engine.name for engine in reversed(engines) if engine.weights}
        names = {tier.engine.name: tier.name for tier in reversed(stack.tiers(db))}
        models: dict[str, SleepingModel] = {}
        tiers: dict[str, str] = {}
        staying = {engine.name for engine in requests.staying(db)}
        may_sleep = frozenset(engine.name for engine in engines if engine.name not in staying)
        asleep = {use.engine for use in uses.values() if use.asleep}
        wanted = {name for name in asleep & rows.keys() if rows[name].desired == "up" and uses[name].asked_at is None}
        may_sleep |= asleep - wanted
        replaced = frozenset(name for name in wanted if self._is_on_its_way(rows[name]))
        states = {name: _state(row, may_sleep=name in may_sleep) for name, row in rows.items()}
        shown: list[str] = []
        ports: set[int] = set()
        for entry in on_demand.models(db):
            own = [name for name in on_demand.names(entry) if self._routes.tier(name) is None]
            shown += [name for name in own if name != entry.engine.name]
            if (engine := serving.get(entry.engine.weights)) is not None:
                tiers |= {on_demand.folded(name): names.get(engine, engine) for name in own}
                continue
            row = rows.get(entry.engine.name)
            states[entry.engine.name] = _on_demand_state(row)
            if row is not None and row.state in ROUTED:
                ports.add(entry.engine.port)
            model = self._model(entry)
            models |= {on_demand.folded(name): model for name in own}
        self._allow(ports)
        may_sleep |= {model.engine for model in models.values()}
        return ModelStates(models, tiers, tuple(shown), states, may_sleep, replaced, self._jobs(db))

    def _is_on_its_way(self, row: Service) -> bool:
        """Return whether an engine that does not serve will.

        One that was given up will while an upgrade is under way, as the version before is to start it then.
        """
        if row.state in ROUTED:
            return False
        return row.state not in GIVEN_UP or ((upgrade := records.read(self.home)) is not None and upgrade.unsettled)

    def _jobs(self, db: Database) -> dict[str, Job]:
        with self._lock:
            awaited = dict(self._awaited)
        jobs: dict[str, Job] = {}
        for engine, number in awaited.items():
            with suppress(NotFound):  # it ended long ago
                jobs[engine] = job.get(db, number)
        return jobs

    def _model(self, entry: on_demand.DiskModel) -> SleepingModel:
        engine, route, retrieval = entry.engine, None, None
        if entry.route is not None and engine.purpose == stack.CHAT:
            route = on_demand_route(entry.model, engine.name, entry.route, self.backend)
        elif entry.route is not None:
            retrieval = on_demand_retrieval(entry.model, engine.name, entry.route, self.backend)
        names = tuple(name for name in on_demand.names(entry) if name != engine.name)
        return SleepingModel(
            entry.model, names, engine.name, engine.purpose, engine.context, engine.vision, route, retrieval
        )


def _state(row: Service, *, may_sleep: bool) -> str:
    """Return the state of an engine of the stack. One that never sleeps is asked whatever it does: others stand in."""
    if row.desired == "up":
        return "loading" if may_sleep and row.state not in ROUTED else "serving"
    return "sleeping" if row.asleep else "stopped"


async def _ring(changed: asyncio.Event, limit_s: float) -> None:
    """Wait for a change, for `limit_s` seconds at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, limit_s)):
            await changed.wait()


def _on_demand_state(row: Service | None) -> str:
    if row is None or row.desired == "down":
        return "sleeping"
    return "serving" if row.state in ROUTED else "loading"


def _once(name: str) -> Callable[[Database], int]:
    """Return what has a model downloaded; asked again, as it is no model that answers even then, it raises NotFound."""
    asks = count()

    def ask(db: Database) -> int:
        if next(asks):
            raise NotFound(f"{name} was downloaded, and no engine here serves it.", hint=f"mlxq models {name}")
        return requests.pull(db, name)

    return ask


def _no_model(message: str) -> Refusal:
    return Refusal(404, message, "model_not_found", "model")


def _too_large(message: str) -> Refusal:
    return Refusal(507, message, "model_does_not_fit", "model")


def _failed(subject: str, loading: Job) -> Refusal:
    """Return why a model could not be loaded or downloaded: 507 where it does not fit, 404 where there is none."""
    if loading.error_code == NotFound.code:
        return _no_model(loading.error or "")
    if loading.error_code == DoesNotFit.code:
        return _too_large(loading.error or "")
    done = _done(loading)
    reason = loading.error or f"job {loading.id} was cancelled"
    headers = {"retry-after": str(errors.RETRY_AFTER_S)}
    return Refusal(503, f"{subject} could not be {done}: {reason}", "load_failed", headers=headers)


def _late(subject: str, loading: Job | None, limit_s: int) -> Refusal:
    """Return that a model was not loaded or downloaded in time, with what it waits for."""
    done = _done(loading)
    reason = (loading.phase or loading.error) if loading else None
    reason = (reason or "no worker has begun with it; check: mlxq status").removesuffix(".")
    message = f"{subject} was not {done} within {limit_s} s: {reason}. It is still being {done}."
    return Refusal(503, message, "load_timeout", headers={"retry-after": str(errors.RETRY_AFTER_S)})


def _done(loading: Job | None) -> str:
    return "downloaded" if loading is not None and loading.kind == "pull_on_demand" else "loaded"
