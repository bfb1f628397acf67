"""Where the services listen: a running one where it was started, one that is down where its next start will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from state import service, settings, stack
from state.db import Database
from state.service import Service
from state.settings import Settings
from state.stack import Engine

BESIDE = {"gateway": "litellm-port", "page": "page-port", "front": "front-port"}
"""The services beside the tiers, and the settings that say where the next start of each listens."""


def listing(db: Database) -> dict[str, int]:
    """Return the port of every service of the stack, and of what is left of an earlier one; 0: it is switched off."""
    return of(settings.load(db.home), stack.engines(db), service.listing(db))


def of(values: Settings, engines: Iterable[Engine], rows: Iterable[Service]) -> dict[str, int]:
    """Return what `listing` does, from what has been read already."""
    coming = {name: values[setting] for name, setting in BESIDE.items()}
    if not values["front"]:
        coming["front"] = 0
    coming |= {engine.name: engine.port for engine in engines}
    return coming | {row.name: row.port for row in rows if row.state in service.ALIVE or row.name not in coming}


def endpoint(at: Mapping[str, int]) -> str:
    """Return the base URL for OpenAI clients: where the gateway is, else where it will be. `at`: as `listing` gives."""
    return f"http://127.0.0.1:{at['gateway']}/v1"
