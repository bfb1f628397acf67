"""LiteLLM's HTTP client for chats, reduced to one sending over our wire.

LiteLLM 1.106.2 asks an engine through OpenAI's SDK, or through a handler of its own. That one's client sends a request
again when the connection breaks; here the wire alone decides who is asked again.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
from litellm.exceptions import Timeout
from litellm.llms.custom_httpx import llm_http_handler
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

from tasks.gateway.litellm_patch import replace

_CHOICE = "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER"
"""LiteLLM's variable that chooses its own handler for OpenAI's dialect."""


class Client(AsyncHTTPHandler):
    """Sends what LiteLLM has written."""

    def __init__(self, wire: httpx.AsyncBaseTransport) -> None:
        """Take the way out."""
        super().__init__(transport=wire)
        self._wire = wire

    async def post(self, url: str, **asked: Any) -> httpx.Response:  # pyright: ignore[reportIncompatibleMethodOverride] - LiteLLM names all but the address
        """Send once. Raises httpx.HTTPStatusError for an error's status, litellm's Timeout for a silence."""
        limits = {"timeout": httpx.Timeout(asked["timeout"]).as_dict()}
        request = httpx.Request("POST", url, headers=asked["headers"], content=asked["data"], extensions=limits)
        try:
            response = await self._wire.handle_async_request(request)
        except httpx.TimeoutException as problem:
            raise Timeout(str(problem), model="", llm_provider="openai") from problem
        return response.raise_for_status()


def install(wire: httpx.AsyncBaseTransport) -> None:
    """Have LiteLLM ask engines with it: OpenAI's SDK reads, checks and copies each answer three times."""
    client = Client(wire)
    known = ("llm_provider", "params", "shared_session")
    if replace(llm_http_handler, "get_async_httpx_client", known, lambda *_, **__: client):
        os.environ[_CHOICE] = "True"
