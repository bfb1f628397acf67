"""The page becomes the command line and the environment of its process."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.plan.environment import KEPT, marker

SERVICE = "page"
HEALTH = "/health"
"""Answers 200 to anybody; all else needs the key."""


def argv(python: str, port: int) -> list[str]:
    """Return the page's command line; it holds no secret, the page reads its key from its home."""
    return [python, "-P", "-m", "mlxq.web", str(port)]


def environment(*, base: Mapping[str, str], home: str, generation: int) -> dict[str, str]:
    """Return the whole environment of the page. `base` is the worker's environment."""
    return {name: base[name] for name in KEPT if name in base} | marker(home, SERVICE, generation)
