"""The gateway's garbage is collected, by the event loop alone."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from tasks.gateway import gc_between_steps


class Ring:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gc_between_steps, "EVERY_S", 0.0)
    gc_between_steps.leave_alone()
    yield
    gc.unfreeze()
    gc.enable()


async def rings(number: int) -> list[weakref.ref[Ring]]:
    """Make rings that nobody holds, and give the collector three turns."""
    collecting = asyncio.create_task(gc_between_steps.collect())
    await asyncio.sleep(0)
    made = [weakref.ref(Ring()) for _ in range(number)]
    for _ in range(3):
        await asyncio.sleep(0)
    collecting.cancel()
    return made


def test_much_garbage_is_collected():
    assert not any(ring() for ring in asyncio.run(rings(gc_between_steps.MANY)))


def test_nothing_is_collected_while_it_is_made():
    kept = [weakref.ref(Ring()) for _ in range(gc_between_steps.MANY)]
    assert all(ring() for ring in kept)


def test_little_garbage_is_left():
    gc.collect()
    assert all(ring() for ring in asyncio.run(rings(10)))
