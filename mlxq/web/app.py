"""The page's ASGI application: its routes, and who may use them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from mlxq.web import chart, charts, job_detail, labels, log_stream
from mlxq.web.auth import COOKIE_S, PageAuth
from mlxq.web.broadcaster import Broadcaster
from mlxq.web.chart import Range
from mlxq.web.charts import Plot
from mlxq.web.html import STATIC, HtmlRenderer
from mlxq.web.security_headers import SecurityHeaders
from state import event, job, ledger, service, stack
from state.db import Database, open_database, read_database
from state.errors import MlxqError, NotFound, NotSetUp
from state.paths import Home
from tasks import kinds, tier_requests
from tasks.batches import control
from tasks.on_demand import requests as model_requests
from tasks.tier_requests import Effects

VERBS = ("start", "restart", "drain", "stop")
TIER_VERBS = ("start", "stop")
MODEL_VERBS = ("load", "unload")
PAGE_EVENTS = 200
"""Events on one page of the timeline."""
REFUSED, MISSING, CONFLICT, BROKEN = 403, 404, 409, 503
FOREVER = "public, max-age=31536000, immutable"
"""Static files are requested with their digest in the URL."""

Answer = Callable[[Request], Awaitable[Response]]


class WebApp:
    """The state of one running page."""

    def __init__(self, home: Home, door: PageAuth) -> None:
        self.home = home
        self.door = door
        self.painter = HtmlRenderer()
        self.stage = Broadcaster(home, self.painter)

    def cookie_name(self, request: Request) -> str:
        """Return the cookie's name. It has the port: browsers share cookies between the ports of a host."""
        return f"mlxq-{request.url.port or 80}"

    def session(self, request: Request) -> str | None:
        """Return the session's cookie; None if it is missing or invalid."""
        cookie = request.cookies.get(self.cookie_name(request))
        return cookie if self.door.knows(cookie) else None

    def for_session(self, answer: Answer) -> Answer:
        """Require a session."""

        async def guarded(request: Request) -> Response:
            if self.session(request) is None:
                return HTMLResponse(self.painter.part("locked"), status_code=401)
            try:
                return await answer(request)
            except NotFound as problem:
                return PlainTextResponse(problem.message, status_code=MISSING)
            except MlxqError as problem:
                return PlainTextResponse(
                    f"{problem.message}\nNext: {problem.hint or 'mlxq doctor'}", status_code=BROKEN
                )

        return guarded

    def for_action(self, answer: Answer) -> Answer:
        """Require a session, its action token, and a request from this page."""

        async def guarded(request: Request) -> Response:
            cookie = self.session(request)
            if cookie is None:
                return _message("Your session has expired. Run: mlxq dashboard", 401)
            if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
                return _message("The request came from another page.", REFUSED)
            if not self.door.may_act(cookie, request.headers.get("x-mlxq-token", "")):
                return _message("This page is out of date. Reload it.", REFUSED)
            try:
                return await answer(request)
            except NotFound as problem:
                return _message(problem.message, MISSING)
            except MlxqError as problem:
                return _message(problem.message, CONFLICT)

        return guarded

    async def enter(self, request: Request) -> Response:
        """Exchange a one-time link for a session cookie.

        The page is then loaded by a refresh, not a redirect: after a click in another site's page, such as a terminal
        in a browser, a redirect would not carry the SameSite=Strict cookie.
        """
        cookie = self.door.enter(request.query_params.get("link", ""))
        if cookie is None:
            return HTMLResponse(self.painter.part("locked"), status_code=401)
        answer = HTMLResponse(self.painter.part("enter"))
        answer.set_cookie(
            self.cookie_name(request), cookie, max_age=COOKIE_S, path="/", httponly=True, samesite="strict"
        )
        return answer

    async def show(self, request: Request) -> Response:
        """Return the page. It begins at once: the browser gets ready, and shows the title, while rows are read."""
        try:
            read_database(self.home).close()  # what cannot be read has another page, and another status
        except NotSetUp:
            return HTMLResponse(self.painter.part("unset"))
        return StreamingResponse(self._page(self._token(request)), media_type="text/html")

    async def _page(self, token: str) -> AsyncGenerator[str]:
        beginning = self.painter.beginning(token)
        yield beginning
        try:
            sections = self.stage.render()
        except MlxqError as problem:
            yield self.painter.part("problem", problem=problem)
        else:
            yield self.painter.part("page", sections=sections, token=token).removeprefix(beginning)

    async def events(self, _request: Request) -> Response:
        """Stream changes as server-sent events."""
        return StreamingResponse(self.stage.watch(), media_type="text/event-stream")

    async def job(self, request: Request) -> Response:
        """Return the details of a job."""
        try:
            with closing(read_database(self.home)) as db:
                detail = job_detail.read(db, request.path_params["job"])
        except NotFound as problem:
            return PlainTextResponse(problem.message, status_code=MISSING)
        return HTMLResponse(self.painter.part("job", detail=detail))

    async def serve(self, request: Request) -> Response:
        """Start, restart, drain or stop a service, an engine with all of its tiers; a stop ends a running drain."""
        name, verb = request.path_params["service"], request.path_params["verb"]
        if verb not in VERBS:
            raise NotFound(f"There is no action {verb!r} for a service.")

        def put(db: Database) -> str:
            service.get(db, name)
            with db.transaction():
                _record(db, [tier.name for tier in stack.served_by(stack.tiers(db), name)], verb)
                number, fresh = ledger.enqueue(db, kinds.new(verb, {"service": name}))
            if verb == "stop" and not fresh and job.get(db, number).kind == "drain":
                ledger.cancel(db, number)  # the watchdog stops a service that is neither desired nor draining
                return f"Job {number}: drain cancelled, stopping now."
            return f"Job {number}: {verb} {name}" if fresh else f"Job {number} is already doing this."

        return await self._act(put)

    async def serve_tier(self, request: Request) -> Response:
        """Start or stop one tier; its engine runs on while it serves others."""
        name, verb = request.path_params["tier"], request.path_params["verb"]
        if verb not in TIER_VERBS:
            raise NotFound(f"There is no action {verb!r} for a tier.")

        def put(db: Database) -> str:
            stack.tier(db, name)
            with db.transaction():
                effects = _record(db, [name], verb)
                jobs = [kinds.new(verb, {"service": engine}) for engine in effects.services]
                jobs += tier_requests.reroute(db, after=[job.kind for job in jobs]) if effects.reroutes else []
                numbers = [number for number, _ in ledger.enqueue_all(db, jobs).values()]
            return f"Job {numbers[0]}: {verb} {name}" if numbers else f"{name} is already as you want it."

        return await self._act(put)

    async def serve_model(self, request: Request) -> Response:
        """Load a model on demand, or let it sleep."""
        name, verb = request.path_params["model"], request.path_params["verb"]
        if verb not in MODEL_VERBS:
            raise NotFound(f"There is no action {verb!r} for a model.")

        def put(db: Database) -> str:
            engine = model_requests.find(db, name)
            number = model_requests.load(db, engine) if verb == "load" else model_requests.unload(db, engine)
            return f"Job {number}: {verb} {name}"

        return await self._act(put)

    async def _drawn(self, draw: Callable[[Database], str]) -> Response:
        """Return what is drawn from state.db, in a thread."""

        def run() -> str:
            with closing(read_database(self.home)) as db:
                return draw(db)

        return HTMLResponse(await asyncio.to_thread(run))

    async def service(self, request: Request) -> Response:
        """Return the page of one service: its memory, speeds, history, events and log."""
        name, now, token, span = request.path_params["service"], time.time(), self._token(request), chart.RANGES["hour"]

        def draw(db: Database) -> str:
            part, plots = self._service_part(db, name), charts.of_service(db, name, span)
            return self.painter.part("service", name=name, part=part, plots=plots, span=span, at=now, token=token)

        return await self._drawn(draw)

    async def service_part(self, request: Request) -> Response:
        """Return what changes of the page of one service."""
        return await self._drawn(lambda db: self._service_part(db, request.path_params["service"]))

    def _service_part(self, db: Database, name: str) -> str:
        from mlxq.web import service_page  # it brings the catalog along, which the first page does without

        return self.painter.part("service_part", page=service_page.read(db, name, self.stage.engines))

    async def service_charts(self, request: Request) -> Response:
        """Return the history of one service over a range."""
        span = chart.RANGES.get(request.path_params["range"])
        if span is None:
            raise NotFound("There is no such range.")

        return await self._drawn(
            lambda db: self._charts(charts.of_service(db, request.path_params["service"], span), span, db)
        )

    def _charts(self, plots: Sequence[Plot], span: Range, db: Database) -> str:
        return self.painter.part("charts", plots=plots, span=span, at=db.now())

    async def log(self, request: Request) -> Response:
        """Return the page of one log."""
        name = log_stream.check(self.home, request.path_params["log"])
        return HTMLResponse(self.painter.part("log_page", name=name))

    async def log_lines(self, request: Request) -> Response:
        """Stream a log as it grows."""
        lines = log_stream.follow(self.home, request.path_params["log"], self.stage.closed)
        return StreamingResponse(lines, media_type="text/event-stream")

    def _token(self, request: Request) -> str:
        return self.door.action_token(self.session(request) or "")

    async def start_all(self, _request: Request) -> Response:
        """Start everything that is in the stack, as `mlxq up` does."""

        def put(db: Database) -> str:
            from tasks import stack_jobs  # it brings the catalog along
            from tasks.gateway.admission import poison_requests

            with db.transaction():
                jobs = ledger.enqueue_all(db, stack_jobs.start_all(db, stack_jobs.everything(db)))
            poison_requests.lift(self.home)
            return f"Job {next(number for number, _ in jobs.values())}: start all"

        return await self._act(put)

    def charts_of(self, span: Range) -> Answer:
        """Return what shows the charts of all engines over a range, each with its own scale or all with one."""

        async def answer(request: Request) -> Response:
            shared = request.query_params.get("scale") == "shared"

            return await self._drawn(lambda db: self._charts(charts.of_engines(db, span, shared=shared), span, db))

        return answer

    async def timeline(self, request: Request) -> Response:
        """Return all events of services, a page at a time, the newest first."""
        before = request.query_params.get("before", "")

        def draw(db: Database) -> str:
            events = event.of_service(db, None, limit=PAGE_EVENTS, before=int(before) if before.isdecimal() else None)
            older = events[0].id if len(events) == PAGE_EVENTS else None
            return self.painter.part("timeline", story=labels.timeline(events), older=older)

        return await self._drawn(draw)

    async def cancel(self, request: Request) -> Response:
        """Cancel a job."""
        job = request.path_params["job"]
        return await self._act(lambda db: f"Cancel requested; job {job} is {ledger.cancel(db, job)}.")

    async def cancel_batch(self, request: Request) -> Response:
        """Have a batch stopped; the requests that are under way are answered first."""

        def put(db: Database) -> str:
            batch = control.cancel(db, control.get(db, request.path_params["batch"]))
            return f"{batch.id} is {batch.status.replace('_', ' ')}."

        return await self._act(put)

    async def retry(self, request: Request) -> Response:
        """Retry a job."""
        job = request.path_params["job"]
        return await self._act(lambda db: f"Retrying job {', '.join(map(str, ledger.revive(db, job)))}.")

    async def _act(self, act: Callable[[Database], str]) -> Response:
        """Run `act` in a thread: a write may have to wait for a lock."""

        def run() -> str:
            with closing(open_database(self.home)) as db:
                return act(db)

        return _message(await asyncio.to_thread(run), 202)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics to Prometheus, which sends the key, or to a session."""
        from mlxq.web import metrics  # prometheus_client takes 6 MB, which most pages never need

        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not self.door.reads_metrics(bearer) and self.session(request) is None:
            return PlainTextResponse("This needs a key. Run: mlxq connect prometheus\n", status_code=401)
        with closing(read_database(self.home)) as db:
            return PlainTextResponse(metrics.text(db), media_type=metrics.CONTENT_TYPE)


class Static(StaticFiles):
    """Static files, whose content never changes under one URL."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file that browsers may cache forever."""
        answer = await super().get_response(path, scope)
        answer.headers["cache-control"] = FOREVER
        return answer


def _record(db: Database, tiers: Sequence[str], verb: str) -> Effects:
    """Record what an action wants of tiers, and return what that takes."""
    if verb == "restart":
        return Effects([])
    return tier_requests.start(db, tiers) if verb == "start" else tier_requests.stop(db, tiers)


def _message(text: str, status: int) -> JSONResponse:
    return JSONResponse({"message": text}, status_code=status)


async def _health(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


def build(page: WebApp) -> Starlette:
    """Return the ASGI application."""
    act = page.for_action
    return Starlette(
        routes=[
            Route("/", page.for_session(page.show)),
            Route("/enter", page.enter),
            Route("/events", page.for_session(page.events)),
            Route("/jobs/{job:int}", page.for_session(page.job)),
            *[Route(f"/charts/{name}", page.for_session(page.charts_of(span))) for name, span in chart.RANGES.items()],
            Route("/timeline", page.for_session(page.timeline)),
            Route("/services/{service}", page.for_session(page.service)),
            Route("/services/{service}/part", page.for_session(page.service_part)),
            Route("/services/{service}/charts/{range}", page.for_session(page.service_charts)),
            Route("/logs/{log}", page.for_session(page.log)),
            Route("/logs/{log}/live", page.for_session(page.log_lines)),
            Route("/stack/start", act(page.start_all), methods=["POST"]),
            Route("/jobs/{job:int}/cancel", act(page.cancel), methods=["POST"]),
            Route("/batches/{batch}/cancel", act(page.cancel_batch), methods=["POST"]),
            Route("/jobs/{job:int}/retry", act(page.retry), methods=["POST"]),
            Route("/services/{service}/{verb}", act(page.serve), methods=["POST"]),
            Route("/tiers/{tier}/{verb}", act(page.serve_tier), methods=["POST"]),
            Route("/models/{model}/{verb}", act(page.serve_model), methods=["POST"]),
            Route("/metrics", page.metrics),
            Route("/health", _health),
            Mount("/static", Static(directory=Path(STATIC))),
        ],
        middleware=[Middleware(SecurityHeaders)],
    )
