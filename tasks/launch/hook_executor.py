"""Where LiteLLM prepares a call: at once, and not in another thread, which costs more than the preparing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any


class Executor(ThreadPoolExecutor):
    """The event loop's default threads, for everything but the preparing of chats.

    LiteLLM's `acompletion` has its twin `completion` run in a thread, which gives it a coroutine and no answer.
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
    if not isinstance(inner, partial) or not inner.keywords.get("acompletion"):
        return False
    return not any(map(_has_files, inner.keywords.get("messages") or ()))


def _has_files(message: Any) -> bool:
    """Tell whether a message has a file, which LiteLLM fetches as it prepares when it is a link."""
    match message:
        case {"content": [*parts]}:
            return any(map(_is_file, parts))  # pyright: ignore[reportUnknownArgumentType] - a client's JSON
        case _:
            return False


def _is_file(part: Any) -> bool:
    match part:
        case {"type": "file"}:
            return True
        case _:
            return False
