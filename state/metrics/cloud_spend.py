"""What left the machine today, and what it cost: one small file that the gateway writes and `mlxq status` reads."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from state.classes import dataclass
from state.files import replace_private
from state.paths import Home


@dataclass
class Spent:
    """The sums of one day (UTC)."""

    day: str
    usd: float = 0.0
    requests: int = 0


def place(home: Home) -> Path:
    """Return the file."""
    return home.root / "cloud.json"


def today() -> str:
    """Return the day by which is counted."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def read(path: Path) -> Spent:
    """Return today's sums; nothing was spent where the file tells of another day, is absent or damaged."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        spent = Spent(str(document["day"]), float(document["usd"]), int(document["requests"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Spent(today())
    return spent if spent.day == today() else Spent(today())


def write(path: Path, spent: Spent) -> None:
    """Replace the file in one step. Raises OSError."""
    replace_private(path, json.dumps(asdict(spent)))
