"""What each tier wants: the floors, and what quality, speed and context are worth there, by intent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STANDARD, FAST, LONGCTX = TIERS = ("standard", "fast", "longctx")


@dataclass(frozen=True)
class Wish:
    """What one tier wants under one intent."""

    contexts: tuple[int, ...]
    """Tokens; the last is enough, the first is the least."""
    decode: float
    """Floor in tokens/s of an answer after a prompt of 8K."""
    prompt: float
    """Floor in tokens/s of reading that prompt."""
    concurrency: tuple[int, int]
    """Requests side by side: the least, and as many as are of use."""
    weight: float
    """Share of this tier in the sum."""
    quality: float
    """Weight of a point of quality."""
    speed: float
    """Worth of each doubling of the decode speed over `plain`."""
    plain: float
    ample: float
    """Speed from which faster is worth nothing more."""
    context: float
    """Worth of each doubling of the context."""
    patience: float
    """Seconds in which a full context must be readable; a longer one is no use."""


def _contexts(least: int, enough: int) -> tuple[int, ...]:
    """Give the doublings from `least` to `enough`, both in units of 1024 tokens."""
    return tuple(1024 * least << step for step in range((enough // least).bit_length()))


INTENTS: Mapping[str, Mapping[str, Wish]] = {
    "balanced": {
        STANDARD: Wish(
            contexts=_contexts(8, 64),
            decode=12,
            prompt=80,
            concurrency=(1, 4),
            weight=1.0,
            quality=1.0,
            speed=3.0,
            plain=12,
            ample=40,
            context=1.5,
            patience=600,
        ),
        FAST: Wish(
            contexts=_contexts(4, 32),
            decode=12,
            prompt=80,
            concurrency=(1, 4),
            weight=0.5,
            quality=0.5,
            speed=6.0,
            plain=30,
            ample=240,
            context=1.0,
            patience=600,
        ),
        LONGCTX: Wish(
            contexts=_contexts(16, 256),
            decode=8,
            prompt=80,
            concurrency=(1, 2),
            weight=0.5,
            quality=0.5,
            speed=2.0,
            plain=8,
            ample=60,
            context=3.0,
            patience=1200,
        ),
    },
    "agent-fleet": {
        STANDARD: Wish(
            contexts=_contexts(16, 64),
            decode=15,
            prompt=150,
            concurrency=(2, 6),
            weight=1.0,
            quality=1.0,
            speed=6.0,
            plain=15,
            ample=80,
            context=3.0,
            patience=600,
        ),
        FAST: Wish(
            contexts=_contexts(8, 32),
            decode=15,
            prompt=150,
            concurrency=(2, 8),
            weight=0.7,
            quality=0.5,
            speed=6.0,
            plain=30,
            ample=240,
            context=1.5,
            patience=600,
        ),
        LONGCTX: Wish(
            contexts=_contexts(16, 256),
            decode=8,
            prompt=80,
            concurrency=(1, 4),
            weight=0.5,
            quality=0.5,
            speed=3.0,
            plain=8,
            ample=80,
            context=3.0,
            patience=1200,
        ),
    },
}
"""balanced: quality first, with about the speeds that Rapid-MLX demands of a model it recommends (10
tokens/s, 100 prompt tokens/s). agent-fleet: tools required at every tier, speed and context weigh twice,
more requests at once."""
