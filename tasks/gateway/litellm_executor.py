"""Where LiteLLM prepares a call: at once, and not in another thread, which costs more than the preparing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any


class Executor(ThreadPoolExecutor):
    """The event loop's default threads, for everything but the preparing of chats.

    LiteLLM's `acompletion` has its twin `completion` run in a thread, which gives it a coroutine and no answer. All
    that could wait there is a document's link, and the door lets none in.
    """

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call; here, when it only prepares. Raises then what the call raises."""
        if not _prepares(call):
            return super().submit(call, *args, **kwargs)
        done: Future[Any] = Future()
        done.set_result(call(*args, **kwargs))
        return done


def _prepares(call: Callable[..., Any]) -> bool:
    inner = call.args[0] if isinstance(call, partial) and call.args else None
    return isinstance(inner, partial) and bool(inner.keywords.get("acompletion"))
