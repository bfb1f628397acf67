"""Facts about this machine and this installation, each under a name: "machine", "stack", "hub"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from state.db import Database, json_mapping


def put(db: Database, name: str, value: Mapping[str, Any]) -> None:
    """Keep a JSON-able fact in place of an older one."""
    with db.transaction():
        db.run(
            "INSERT INTO facts (name, value, at) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value, at = excluded.at",
            (name, json.dumps(dict(value)), db.now()),
        )
        db.announce()


def get(db: Database, name: str) -> dict[str, Any]:
    """Return the fact of that name; empty when there is none."""
    return json_mapping(db.value("SELECT value FROM facts WHERE name = ?", (name,)))
