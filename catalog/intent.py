"""What each tier wants: the floors, and what quality, speed and context are worth there, by intent."""

from __future__ import annotations

from collections.abc import Mapping

from state.classes import dataclass

STANDARD, FAST, LONGCTX = TIERS = ("standard", "fast", "longctx")
AGENTS = "agent-fleet"


@dataclass(frozen=True)
class Wish:
    """What one tier wants under one intent."""

    contexts: tuple[int, ...]
    """Tokens; the last is enough, the first is the least."""
    cramped: tuple[int, ...]
    """Tokens that will do where not even the least of one model fits."""
    decode: float
    """Floor in tokens/s of an answer after a prompt of 8K."""
    prompt: float
    """Floor in tokens/s of reading that prompt."""
    concurrency: int
    """As many requests side by side as are of use."""
    weight: float
    """Share of this tier in the sum."""
    quality: float
    """Weight of a point of quality."""
    clever: float
    """Points of quality from which better is worth nothing more."""
    speed: float
    """Worth of each doubling of the decode speed over `plain`."""
    plain: float
    ample: float
    """Speed from which faster is worth nothing more."""
    context: float
    """Worth of each doubling of the context."""
    patience: float
    """Seconds in which a full context must be readable; a longer one is no use."""
    own: float = 0.0
    """Worth of an engine of its own: its answers never wait behind those of another tier."""
    agents: bool = False
    """Whether quality is judged by coding and tool use too."""
    tools: float = 0.0
    """What it costs that the engine cannot read a model's tool calls."""
    reread: float = 0.0
    """What each doubling of the seconds costs in which a model reads a usual prompt again, at every turn."""


def _contexts(least: int, enough: int) -> tuple[int, ...]:
    """Return the doublings from `least` to `enough`, both in units of 1024 tokens."""
    return tuple(1024 * least << step for step in range((enough // least).bit_length()))


INTENTS: Mapping[str, Mapping[str, Wish]] = {
    "balanced": {
        STANDARD: Wish(
            contexts=_contexts(32, 64),
            cramped=_contexts(4, 16),
            decode=12,
            prompt=80,
            concurrency=4,
            weight=1.0,
            quality=1.5,
            clever=100,
            speed=3.0,
            plain=12,
            ample=40,
            context=1.5,
            patience=600,
            tools=5.0,
            reread=0.5,
        ),
        FAST: Wish(
            contexts=_contexts(16, 32),
            cramped=_contexts(4, 8),
            decode=12,
            prompt=80,
            concurrency=4,
            weight=0.5,
            quality=1.0,
            clever=25,
            speed=3.0,
            plain=30,
            ample=120,
            context=1.0,
            patience=300,
            own=12.0,
            tools=5.0,
        ),
        LONGCTX: Wish(
            contexts=_contexts(32, 256),
            cramped=_contexts(4, 16),
            decode=8,
            prompt=80,
            concurrency=2,
            weight=0.5,
            quality=0.5,
            clever=100,
            speed=2.0,
            plain=8,
            ample=60,
            context=2.0,
            patience=600,
            tools=5.0,
        ),
    },
    AGENTS: {
        STANDARD: Wish(
            contexts=_contexts(64, 128),
            cramped=_contexts(8, 32),
            decode=12,
            prompt=100,
            concurrency=6,
            weight=1.0,
            quality=1.5,
            clever=100,
            speed=6.0,
            plain=12,
            ample=80,
            context=3.0,
            patience=600,
            agents=True,
            reread=3.0,
        ),
        FAST: Wish(
            contexts=_contexts(32, 64),
            cramped=_contexts(8, 16),
            decode=12,
            prompt=100,
            concurrency=8,
            weight=0.7,
            quality=1.0,
            clever=25,
            speed=3.0,
            plain=30,
            ample=120,
            context=1.5,
            patience=300,
            own=12.0,
            agents=True,
            reread=1.0,
        ),
        LONGCTX: Wish(
            contexts=_contexts(64, 256),
            cramped=_contexts(8, 32),
            decode=8,
            prompt=80,
            concurrency=4,
            weight=0.5,
            quality=0.5,
            clever=100,
            speed=3.0,
            plain=8,
            ample=80,
            context=2.0,
            patience=600,
            agents=True,
            reread=1.0,
        ),
    },
}
"""balanced: quality first, with about the speeds that Rapid-MLX demands of a model it recommends (10
tokens/s, 100 prompt tokens/s). agent-fleet: tools required at every tier, speed and context weigh twice,
more requests at once. Windows: Claude Code and Codex send about 20K before the first word, and Ollama asks for 64K."""
