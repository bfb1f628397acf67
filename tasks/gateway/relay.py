"""Sends a checked request to the engines, one after another, until one answers; its bytes go straight back."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from tasks.gateway import errors
from tasks.gateway.admission import context_limit
from tasks.gateway.admission.poison_requests import PoisonGuard
from tasks.gateway.cloud.openrouter import Cloud
from tasks.gateway.cooldown import Cooldown
from tasks.gateway.dialects import chat_stream, checks, json_schema, outputs, plans, turns, usage
from tasks.gateway.dialects.dialect import CHAT, Dialect
from tasks.gateway.dialects.outputs import ChunkSource, Exchange
from tasks.gateway.dialects.plans import Plan
from tasks.gateway.dialects.reasoning import ReasoningStore
from tasks.gateway.dialects.schemas import Fields
from tasks.gateway.dialects.turns import Message
from tasks.gateway.dialects.usage import ReuseSource
from tasks.gateway.engine_answer import EngineAnswer
from tasks.gateway.engine_client import Answer, EngineClient, EngineDown
from tasks.gateway.errors import NotAsAsked, Refusal
from tasks.gateway.images import parts
from tasks.gateway.images.remote import RemoteImages
from tasks.gateway.reply import Reply
from tasks.gateway.request_context import Call
from tasks.gateway.reuse_meter import ReportedReuse, ReuseMeter
from tasks.gateway.routes import Route, Routes
from tasks.plan import request_stats
from tasks.plan.gateway import CLOUD

log = logging.getLogger("mlxq.gateway")

_BAD, _BUSY = 400, 429
_THE_CALLERS = frozenset({400, 404, 405, 413, 415, 422})
"""Statuses by which an engine says that the request is at fault."""


class _Refused(Exception):
    """No tier needs to be asked any more."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _BrokenOff(EngineDown):
    """An engine failed after the first words of its answer, which the caller already has."""


class _Unfit(Exception):
    """This tier cannot take the request, and another one may."""


@dataclass
class RelayRequest:
    """One checked request to relay."""

    call: Call
    dialect: Dialect
    fields: Fields
    tier: str
    alone: bool
    """Whether the caller wants this tier or none."""
    streams: bool
    overlong: set[str] = field(default_factory=set[str])
    """Tiers that are too small for it."""
    busy: dict[str, str] = field(default_factory=dict[str, str])
    """Tiers that are at their limit -> seconds after which to ask again."""
    reuse: ReuseSource = field(default_factory=ReportedReuse)
    """What was not read again of its prompt, by the tier that is asked now."""
    conversation: Sequence[Message] = ()
    """A chat's messages as the caller has them."""


class Relay:
    """Relays requests to the engines, and to the cloud last."""

    def __init__(
        self,
        routes: Routes,
        client: EngineClient,
        guard: PoisonGuard,
        cooldown: Cooldown,
        cloud: Cloud | None,
        *,
        keep_out: Callable[[str], None],
    ) -> None:
        """`keep_out`: has an engine, by name, keep none of its prompts on disk from now on."""
        self._routes = routes
        self._client = client
        self._guard = guard
        self._cooldown = cooldown
        self._cloud = cloud
        self._keep_out = keep_out
        self._meter = ReuseMeter(client)
        self._reasoning = ReasoningStore()
        self._remote = RemoteImages() if routes.remote_images else None
        self._in_flight: Counter[str] = Counter()

    async def answer(self, request: RelayRequest, reply: Reply) -> Refusal | None:
        """Have the first tier that can answer the request; return why none did, with nothing sent yet."""
        if request.streams:
            reply.wait()
        try:
            return await self._bring_images(request) or await self._first_answer(request, reply)
        except (_Refused, NotAsAsked) as problem:
            return problem.refusal
        finally:
            await reply.stop_waiting()

    async def refuse(self, request: RelayRequest, refusal: Refusal, reply: Reply) -> None:
        """Send a refusal, and log it."""
        self._log(request, refusal)
        await reply.refuse(refusal)

    async def _bring_images(self, request: RelayRequest) -> Refusal | None:
        """Have the images that the request links to in it, where that is allowed and its tier sees."""
        if self._remote is None or not self._routes.route(request.tier).vision:
            return None
        return await self._remote.bring_in(parts.of(request.fields))

    async def _first_answer(self, request: RelayRequest, reply: Reply) -> Refusal | None:
        """Ask one tier after another; return the refusal where none answers."""
        for tier in self._chain(request):
            self._check_poison(request.call)
            try:
                await (self._ask_cloud(request, reply) if tier == CLOUD else self._ask(request, tier, reply))
            except _Unfit:
                continue
            except _BrokenOff as problem:
                self._failed(request.call, tier, problem)
                return None
            except EngineDown as problem:
                self._failed(request.call, tier, problem)
            else:
                self._guard.answered(lambda: request.call.fingerprint)
                self._cooldown.answered(self._routes.engine(tier))
                return None
        return self._exhausted(request)

    def _chain(self, request: RelayRequest) -> list[str]:
        """Return the tiers to ask, in order. Raises _Refused for a stopped one where there is no other."""
        stopped = self._routes.route(request.tier).stopped
        chain = [request.tier] if request.alone else self._routes.chain(request.tier)
        if stopped and (request.alone or not chain):
            raise _Refused(errors.stopped(request.tier))
        if request.call.local:
            chain = [tier for tier in chain if tier != CLOUD]
        return self._cooldown.order(chain, self._routes.engine)

    def _check_poison(self, call: Call) -> None:
        if killers := self._guard.killers(lambda: call.fingerprint):
            tiers = sorted(tier for tier, route in self._routes.everything() if route.engine in killers)
            message = (
                f"{', '.join(tiers)} crashed during this very request, so no tier gets it for a while. "
                "Try again in 30 s, or lift this: mlxq up"
            )
            raise _Refused(Refusal(422, message, "request_kills_tiers"))

    def _failed(self, call: Call, tier: str, problem: EngineDown) -> None:
        """Record a failure that is the tier's own."""
        call.failures[tier] = str(problem)
        engine = self._routes.engine(tier)
        self._cooldown.failed(engine)
        if problem.died:
            self._guard.crashed(call.fingerprint, engine, alone=self._in_flight[engine] == 0)

    def _exhausted(self, request: RelayRequest) -> Refusal:
        """Return why none of the tiers answered."""
        failures = request.call.failures
        if request.overlong and not failures and not request.busy:
            return errors.overflow(self._largest(request))
        if request.busy and not failures:
            return errors.busy(max(request.busy.values(), key=lambda wait: int(wait) if wait.isdigit() else 0) or "1")
        return errors.unavailable({**failures, **dict.fromkeys(request.busy, "is busy")})

    def _largest(self, request: RelayRequest) -> int:
        """Return the most tokens that those take who may answer a request."""
        on_demand = self._routes.on_demand.get(request.tier)
        return on_demand.context if on_demand else self._routes.largest

    def _log(self, request: RelayRequest, refusal: Refusal) -> None:
        call = request.call
        failures = "; ".join(f"{tier} {problem}" for tier, problem in call.failures.items())
        log.warning(
            "%d %s key=%s asked=%r: %s", refusal.status, call.path, call.key, call.asked, failures or refusal.code
        )

    # One engine

    async def _ask(self, request: RelayRequest, tier: str, reply: Reply) -> None:
        """Have one engine answer. Raises EngineDown, _Unfit, _Refused, NotAsAsked."""
        route = self._routes.route(tier)
        plan = await self._planned(request, route)
        content = orjson.dumps(plan.body)
        await self._check_length(request, plan, content, route)
        request.call.tried.append(tier)
        if plan.dropped:
            reply.add("x-mlxq-dropped", ",".join(plan.dropped))
        if not request.call.store:
            self._keep_out(route.engine)
        with self._counted(route.engine):
            request.reuse = await self._meter.begin(route)
            try:
                await self._post(request, plan, content, reply)
            finally:
                self._meter.end(request.reuse)

    async def _post(self, request: RelayRequest, plan: Plan, content: bytes, reply: Reply) -> None:
        """Send what was planned to the engine that is asked now, and its answer on. Raises as `_ask`."""
        route = self._routes.route(request.call.tier)
        answer = EngineAnswer(self._client, route, plan)
        try:
            await answer.ask(content)
            if answer.head.status >= _BAD:
                await self._bad(request, route.name, answer.head)
            await self._pass_on(request, plan, route, answer, reply)
        finally:
            answer.close()

    @contextmanager
    def _counted(self, engine: str) -> Generator[None]:
        """Count the requests in flight at an engine."""
        self._in_flight[engine] += 1
        try:
            yield
        finally:
            self._in_flight[engine] -= 1

    async def _planned(self, request: RelayRequest, route: Route) -> Plan:
        refusal = not_carried_out(request, route)
        if refusal is not None:
            if route.name == request.tier:
                raise _Refused(refusal)
            request.call.failures[route.name] = "cannot do what was asked"
            raise _Unfit
        plan = plans.plan(
            request.dialect,
            request.fields,
            route.engine,
            route.can,
            route.defaults,
            longest_answer=route.longest_answer,
            thinking=route.thinking,
            times=(request.call.began, request.call.loaded_s),
        )
        if plan.schema is not None and (fault := await asyncio.to_thread(json_schema.faulty, plan.schema)):
            raise _Refused(Refusal(400, f"The JSON schema is not valid: {fault}", "invalid_json_schema"))
        if plan.dialect is CHAT and route.template:
            self._put_back(request, plan, reads=route.template.reads)
        return plan

    def _put_back(self, request: RelayRequest, plan: Plan, *, reads: bool) -> None:
        """Add to the turns of a conversation the thoughts that they lack, where the chat template `reads` them."""
        request.conversation = plan.body["messages"]
        if reads:
            messages = self._reasoning.put_back(request.call.key, request.conversation)
            plan.body["messages"] = turns.with_thoughts_inside(messages)

    async def _check_length(self, request: RelayRequest, plan: Plan, content: bytes, route: Route) -> None:
        if route.can.context_check:
            return
        if await context_limit.excess(request.call, content, plan.body, route, self._client) is not None:
            request.overlong.add(route.name)
            raise _Unfit

    async def _bad(self, request: RelayRequest, tier: str, answer: Answer) -> None:
        """Judge an engine's error. Raises _Unfit, _Refused, EngineDown; the engine's words go no further."""
        if answer.status == _BUSY:
            request.busy[tier] = answer.retry_after or "1"
            raise _Unfit
        content = await answer.read()
        if refusal := errors.about_answer(content):
            raise _Refused(refusal)
        if answer.status not in _THE_CALLERS:
            raise EngineDown(f"answered {answer.status}")
        if errors.about_length(content):
            request.overlong.add(tier)
            raise _Unfit
        raise _Refused(errors.refused_by_engine(tier, answer.status))

    async def _pass_on(
        self, request: RelayRequest, plan: Plan, route: Route, source: ChunkSource, reply: Reply
    ) -> None:
        """Send an engine's good answer to the caller. After its first words a failure ends the stream as an error."""
        call = request.call

        async def count(answered: int) -> Mapping[str, Any] | None:
            return await self._usage_so_far(route, answered)

        exchange = Exchange(plan, source, count, request.reuse, call.id.removeprefix("req_"))
        if not plan.streams:
            content = await outputs.whole(exchange)
            call.heard()
            self._note(request, exchange)
            await reply.whole(content)
            return
        stream = outputs.stream(exchange)
        opening = await stream.opening()
        await reply.stop_waiting()
        call.heard()
        try:
            await reply.write(opening)
            async for run in stream.rest():
                await reply.write(run)
            await reply.end()
        except EngineDown as problem:
            log.warning("%s key=%s: %s %s after its first words", call.path, call.key, route.name, problem)
            await reply.fail(errors.broken_off(route.name))
            raise _BrokenOff(str(problem), died=problem.died) from problem
        finally:
            self._note(request, exchange)

    def _note(self, request: RelayRequest, exchange: Exchange) -> None:
        """Count the tokens of an answer, and keep what was thought before it."""
        call, tokens = request.call, exchange.tokens
        if tokens is not None:
            call.prompt_tokens, call.completion_tokens = tokens.prompt, tokens.answer
            call.cached_tokens = tokens.cached or 0
        if call.store and exchange.plan.thinking.kept and exchange.turn is not None:
            self._reasoning.keep(call.key, request.conversation, exchange.turn, turns.thoughts(exchange.turn))

    async def _usage_so_far(self, route: Route, answered: int) -> Mapping[str, Any] | None:
        """Ask an engine how long the prompt of a running request is, as a cut stream never says it.

        The engine's account has no request id that we know, so the one nearest in progress is taken.
        """
        status = await self._client.get(route, "/v1/status")
        running = request_stats.read_requests(status)
        if not running:
            return None
        nearest = min(running, key=lambda request: abs(request.completion_tokens - answered))
        counted = chat_stream.usage_of(nearest.prompt_tokens, answered)
        if not route.can.cached_tokens:
            return counted
        return usage.with_cached(counted, nearest.cached_tokens)

    # The cloud

    async def _ask_cloud(self, request: RelayRequest, reply: Reply) -> None:
        """Have the last resort answer. Raises EngineDown, _Unfit, _Refused, NotAsAsked."""
        assert self._cloud is not None, "a chain with the cloud in it has one"
        call = request.call
        if spent := self._cloud.budget.exhausted():
            call.failures[CLOUD] = spent
            raise _Unfit
        plan = await self._planned(request, self._cloud.route)
        call.tried.append(CLOUD)
        request.reuse = ReportedReuse()
        async with self._cloud.asked(call, plan) as source:
            await self._pass_on(request, plan, self._cloud.route, source, reply)


def not_carried_out(request: RelayRequest, route: Route) -> Refusal | None:
    """Return why a valid request cannot be done as asked by the model of a route, None when it can."""
    return checks.not_carried_out(
        request.fields, route.name, route.can, vision=route.vision, thinks=route.template is not None
    )
