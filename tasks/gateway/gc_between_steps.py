"""Where the garbage collector runs: between two steps of the event loop, and nowhere else.

CPython before 3.12 collects wherever something is allocated, also in the middle of ContextVar.set. A finalizer that
sets a variable then frees what is being read, and the process crashes (CPython issue 148891). aiohttp's finalizer of a
session that LiteLLM left open does; under load the gateway was seen to die of it twice in a day.
"""

from __future__ import annotations

import asyncio
import gc

EVERY_S = 1.0
MANY = 10_000
"""Objects made and not freed since the last collection; at 200 requests a second they are there every second."""
OFTEN = 30
"""Collections of what is young before one of everything."""


def leave_alone() -> None:
    """Collect nothing until `collect` does: all that is imported stays, and to look it through slowed the start."""
    gc.disable()


async def collect() -> None:
    """Collect what is made from now on, when it is much."""
    gc.freeze()
    while True:
        await asyncio.sleep(EVERY_S)
        young, _, collections = gc.get_count()
        if young > MANY:
            gc.collect(2 if collections > OFTEN else 1)
