"""One request to the API of files and batches, and what it may be answered with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.types import Receive, Scope

from tasks.gateway.errors import Refusal

_HOST = re.compile(rb"[A-Za-z0-9.\[\]:-]{1,255}")


@dataclass(frozen=True)
class BatchCall:
    """One request to this API."""

    scope: Scope
    receive: Receive
    owner: str
    """The name of the caller's key."""
    id: str
    """The file or batch in the path."""

    @property
    def host(self) -> str:
        """The address by which the caller knows the gateway; empty where it says none that makes sense."""
        host = dict(self.scope["headers"]).get(b"host", b"")
        return f"http://{host.decode('ascii')}" if _HOST.fullmatch(host) else ""


Outcome = dict[str, Any] | Refusal | Path
"""A JSON document, a refusal, or a file to send."""


def unknown(kind: Literal["file", "batch"], name: str) -> Refusal:
    """Return the refusal of what does not exist, or not for this key."""
    return Refusal(404, f"There is no {kind} {name}.", "not_found", "id")
