"""An engine's answer to one request, which may take two: the second answers after what was thought in the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from tasks.gateway.dialects.json_values import obj
from tasks.gateway.dialects.plans import Plan
from tasks.gateway.dialects.turns import CLOSED, OPENED
from tasks.gateway.engine_client import Answer, EngineClient, EngineDown
from tasks.gateway.routes import Route

ENOUGH = "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
"""Ends the thoughts of a model that has used its budget: the words of the Qwen3 Technical Report, section 4.4."""
_BAD = 400


class EngineAnswer:
    """What an engine answers to a plan."""

    def __init__(self, client: EngineClient, route: Route, plan: Plan) -> None:
        self._client = client
        self._route = route
        self._plan = plan
        self._answers: list[Answer] = []

    @property
    def head(self) -> Answer:
        """The answer that is under way."""
        return self._answers[-1]

    async def ask(self, content: bytes) -> None:
        """Send a request. Raises EngineDown."""
        post = self._client.post(self._route, self._plan.dialect.path, content, stream=self._plan.asks_stream)
        self._answers.append(await post)

    async def read(self) -> bytes:
        """Return the whole body. Raises EngineDown."""
        return await self.head.read()

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises EngineDown."""
        return self.head.chunks()

    async def resume(self, thoughts: str) -> AsyncIterator[bytes]:
        """End the answer, and have the engine answer after what it has thought. Raises EngineDown.

        The thoughts are in the prompt as those of a turn without text, and the next turn does not think. An engine that
        reuses prompts reads the thoughts alone.
        """
        self.head.close()
        await self.ask(orjson.dumps(self._resumed(thoughts)))
        if self.head.status >= _BAD:
            raise EngineDown(f"answered {self.head.status}")
        return self.head.chunks()

    def _resumed(self, thoughts: str) -> dict[str, Any]:
        body, spent = self._plan.body, self._plan.thinking.budget or 0
        thought = {"role": "assistant", "content": f"{OPENED}{thoughts.strip()}\n\n{ENOUGH}{CLOSED}"}
        arguments = {**obj(body.get("chat_template_kwargs")), "enable_thinking": False}
        limit = {"max_tokens": max(1, body["max_tokens"] - spent)} if "max_tokens" in body else {}
        return {**body, **limit, "messages": [*body["messages"], thought], "chat_template_kwargs": arguments}

    def close(self) -> None:
        """Close the connections unless the answers are out: by that an engine stops working on them."""
        for answer in self._answers:
            answer.close()
