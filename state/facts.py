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


def budget_percent(db: Database, setting: int | str) -> int | None:
    """Return the share of memory that models may use, in percent: as named for this stack, else by the setting.

    None stands for `auto`: all that is usable.
    """
    stack = get(db, "stack")
    named = stack.get("asked", {}).get("budget_pct") if stack.get("budget_named") else None
    share = named or setting
    return share if isinstance(share, int) else None


def get(db: Database, name: str) -> dict[str, Any]:
    """Return the fact of that name; empty when there is none."""
    return json_mapping(db.value("SELECT value FROM facts WHERE name = ?", (name,)))
