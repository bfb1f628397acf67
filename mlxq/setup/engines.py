"""The engine that setup installs beside its own, in words: what it costs, what it buys, and what is lost without it."""

from __future__ import annotations

from catalog import units
from catalog.engines import FALLBACK, entry

MB = 1_000_000
NO_INDEX = "the package index is out of reach."


def gain(engine: str) -> str:
    """Return that an engine is installed, with its sizes and what it buys."""
    package = entry(engine)
    fetch, size = units.files(package.download_mb * MB), units.files(package.installed_mb * MB)
    return (
        f"With the engine {engine} {package.version} ({fetch} to download, {size} on disk): it reads each prompt once, "
        f"where {FALLBACK} reads a conversation again at every turn."
    )


def loss(engine: str, reason: str) -> str:
    """Return that an engine was not installed; `reason`: a sentence."""
    return (
        f"{engine} is not installed: {reason} The tiers serve on {FALLBACK}, which reads every prompt in full. Later: "
        f"mlxq engine install {engine}"
    )
