"""The cloud escape hatch: OpenRouter, asked through LiteLLM, which is imported when it is first needed.

LiteLLM costs 350 MB and seconds of imports, so no local request touches it. It is given the address, the key and the
fields that the gateway has checked by name, and nothing of a client's body else: it obeys fields such as `api_base`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from catalog.engines import Abilities, ThinkingBudget
from tasks.gateway.cloud.budget import CloudBudget
from tasks.gateway.dialects import sse
from tasks.gateway.dialects.dialect import COMPLETIONS
from tasks.gateway.dialects.json_values import obj
from tasks.gateway.dialects.plans import Plan
from tasks.gateway.engine_client import EngineDown
from tasks.gateway.request_context import Call
from tasks.gateway.routes import Route
from tasks.plan.gateway import CLOUD

TIMEOUT_S = 120.0
CONTEXT = 2**31 - 1
"""Tokens: no limit of ours, as the cloud checks its own."""
_EXTRA = ("top_k", "min_p", "repetition_penalty")
"""Fields that OpenRouter knows and OpenAI does not."""
_LOCAL = (
    "model",
    "stream",
    "stream_options",
    "enable_thinking",
    "thinking_token_budget",
    "chat_template_kwargs",
)
_CAN = Abilities(
    engine=CLOUD,
    dialects=frozenset({"chat", "completions"}),
    stop_strings=True,
    json_schema=True,
    json_object=True,
    context_check=True,
    cached_tokens=True,
    counts_exactly=False,
    forced_tools=True,
    max_completion_tokens=True,
    logprobs=True,
    frequency_penalty=True,
    logit_bias=True,
    thinking_budget=ThinkingBudget("thinking_token_budget", frozenset(), with_tools=False),
    image_check=True,
    cancel_on_close=True,
    embeddings=False,
    rerank=False,
    mtp=False,
    prompt_lookup=False,
    live_cache_quants=False,
    silence_s=30.0,
)


class Cloud:
    """One model at OpenRouter."""

    route = Route(CLOUD, CLOUD, 0, CONTEXT, vision=True, can=_CAN)

    def __init__(self, model: str, url: str, key: str, budget: CloudBudget) -> None:
        self._model = model
        self._url = url
        self._key = key
        self.budget = budget

    @asynccontextmanager
    async def asked(self, call: Call, plan: Plan) -> AsyncGenerator[CloudAnswer]:
        """Ask, and have the answer charged at the end, however it ends. Raises EngineDown."""
        litellm = await asyncio.to_thread(_litellm)
        self.budget.log_egress(call)
        answer: CloudAnswer | None = None
        try:
            with _failures():
                answer = CloudAnswer(await self._send(litellm, plan), plan)
            yield answer
        finally:
            self.budget.charge(answer.usage if answer else {})

    async def _send(self, litellm: Any, plan: Plan) -> Any:
        fields = {name: value for name, value in plan.body.items() if name not in (*_LOCAL, *_EXTRA)}
        extra = {name: plan.body[name] for name in _EXTRA if name in plan.body}
        common: dict[str, Any] = {
            "api_base": self._url,
            "api_key": self._key,
            "timeout": TIMEOUT_S,
            "stream": plan.asks_stream,
            "max_retries": 0,
        }
        common["extra_body"] = {**extra, "usage": {"include": True}}
        if plan.asks_stream:
            common["stream_options"] = {"include_usage": True}
        if plan.dialect is COMPLETIONS:
            return await litellm.atext_completion(model=f"text-completion-openai/{self._model}", **fields, **common)
        return await litellm.acompletion(model=f"openai/{self._model}", **fields, **common)


class CloudAnswer:
    """What LiteLLM gives back, as the bytes that an engine would have sent."""

    def __init__(self, stream: Any, plan: Plan) -> None:
        self._given = stream
        self._plan = plan
        self.usage: Mapping[str, Any] = {}

    async def read(self) -> bytes:
        """Return the whole answer."""
        answer = _plain(self._given)
        self.usage = answer.get("usage") or {}
        return orjson.dumps(answer)

    async def resume(self, thoughts: str) -> AsyncIterator[bytes]:
        """Raise EngineDown: thoughts in the cloud have no limit here."""
        raise EngineDown(f"cannot answer after {len(thoughts)} characters of thoughts")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield its events. Raises EngineDown."""
        with _failures():
            async for chunk in self._given:
                event = _plain(chunk)
                self.usage = obj(event.get("usage")) or self.usage
                yield sse.encode(event)
        yield b"data: " + sse.DONE + sse.END


def _plain(source: Any) -> dict[str, Any]:
    """Return an object of LiteLLM's as JSON has it, without its private parts."""
    document = obj(source) or obj(source.model_dump(mode="json", exclude_none=True))
    return {name: value for name, value in document.items() if not name.startswith("_")}


class _failures:  # noqa: N801 - read as a word
    """Turns what LiteLLM raises into EngineDown: its words go no further than its class."""

    def __enter__(self) -> None:
        """Watch."""

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        """Raise EngineDown for a failure of the cloud's."""
        import openai

        if isinstance(problem, openai.APIError | OSError | TimeoutError):
            status = getattr(problem, "status_code", None)
            raise EngineDown(f"answered {status}" if status else "is out of reach") from problem


def _litellm() -> Any:
    """Return LiteLLM, silent."""
    import litellm

    litellm.suppress_debug_info = True
    litellm.drop_params = True
    return litellm
