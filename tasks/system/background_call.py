"""A call that may take minutes, made beside the thread that waits for it.

A daemon thread, unlike a thread pool's, does not hold up the end of the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class BackgroundCall(Generic[T]):
    """One call in a thread of its own."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._ended = threading.Event()
        self._values: list[T] = []
        self._problem: BaseException | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until the call has ended, `seconds` at most; return whether it has."""
        return self._ended.wait(seconds)

    @property
    def ended(self) -> bool:
        """Whether the call has ended."""
        return self._ended.is_set()

    def result(self) -> T:
        """Return what the ended call returned, or raise what it raised."""
        if self._problem is not None:
            raise self._problem
        return self._values[0]

    def _run(self) -> None:
        with self:
            self._values.append(self._function())
        self._ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, problem: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        """Keep what the call raised for the thread that waits."""
        self._problem = problem
        return True
