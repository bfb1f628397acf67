"""What a benchmark asks, and what its answers mean."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import median

from state.classes import dataclass
from state.metrics.bench import Bench, Round

WARN, FAIL = 0.15, 0.30
"""Shares by which a speed may fall short of the prediction."""
SLOWER = 0.9
"""A new version of an engine that reaches less than this share of the old one's speed is not used."""
FEWEST_TOKENS = 8
"""An answer with fewer says nothing about speed."""
TOOL_TOKENS = 1024
"""Of an answer that calls a tool, thoughts included."""
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work night point home water room mother area money story
""".split()  # noqa: SIM905 (quoted, they would be half a page)
"""Words that are one token each in every tokenizer of the catalog."""
ASK = "\n\nWrite a very long story with as many of these words as you can. Do not stop early."


@dataclass(frozen=True)
class TimedAnswer:
    """One request, as its caller saw it. Times are seconds."""

    ttft_s: float
    """From the request to the first token, thoughts included."""
    streaming_s: float
    """From the first token to the last."""
    prompt_tokens: int
    tokens: int
    text: str = ""
    """What was written, thoughts included."""

    @property
    def decode_tps(self) -> float:
        """Tokens/s after the first: n tokens have n - 1 gaps."""
        return (self.tokens - 1) / self.streaming_s

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens/s; the first token's own step counts too."""
        return self.prompt_tokens / self.ttft_s


def prompt(tokens: int, seed: str) -> str:
    """Return a prompt of about `tokens` tokens that begins like no other, so that no cache of old prompts helps."""
    chance = random.Random(seed)  # noqa: S311 (a different text, no secret)
    return " ".join([seed, *(chance.choice(WORDS) for _ in range(max(1, tokens - 40)))]) + ASK


def usable(answers: Sequence[TimedAnswer]) -> list[TimedAnswer]:
    """Return the answers that are long enough to measure."""
    return [answer for answer in answers if answer.tokens >= FEWEST_TOKENS and answer.streaming_s > 0]


def summarize(concurrency: int, answers: Sequence[TimedAnswer], walls: Sequence[float]) -> Round:
    """Sum up what one round measured; `walls` are the seconds that each run took."""
    speeds = [answer.decode_tps for answer in answers]
    return Round(
        concurrency=concurrency,
        prompt_tokens=round(median(answer.prompt_tokens for answer in answers)),
        gen_tokens=round(median(answer.tokens for answer in answers)),
        ttft_s=median(answer.ttft_s for answer in answers),
        prompt_tps=median(answer.prompt_tps for answer in answers),
        decode_tps=median(speeds),
        decode_low=min(speeds),
        decode_high=max(speeds),
        total_tps=sum(answer.tokens for answer in answers) / sum(walls),
    )


def verdict(decode: float, prompt_tps: float, predicted_decode: float, predicted_prompt: float) -> str:
    """Hold the speeds against the prediction: PASS, WARN from 15 % below it, FAIL from 30 %. The worse one counts."""
    short = max(1 - decode / predicted_decode, 1 - prompt_tps / predicted_prompt)
    return "FAIL" if short >= FAIL else "WARN" if short >= WARN else "PASS"


def slower(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """Return why a new version of an engine is not used: it writes or reads at less than SLOWER of the old speed.

    Speeds in tokens/s under "decode_tps" and "prompt_tps".
    """
    for name, word in (("decode_tps", "writes"), ("prompt_tps", "reads")):
        if after[name] < SLOWER * before[name]:
            return f"it {word} {after[name]:.1f} tokens/s here, the version before it {before[name]:.1f}"
    return None


def regressions(rows: Sequence[Bench]) -> dict[int, str]:
    """Return how much slower a benchmark is than the last one like it, by its index in `rows` (oldest first)."""
    notes: dict[int, str] = {}
    last: dict[tuple[object, ...], Bench] = {}
    for position, row in enumerate(rows):
        alike = (row.quant, row.concurrency, row.prompt_tokens // 256)
        before = last.get(alike)
        if before and row.decode_tps < (1 - WARN) * before.decode_tps:
            notes[position] = f"{1 - row.decode_tps / before.decode_tps:.0%} slower{_since(before, row)}"
        last[alike] = row
    return notes


def _engines(before: str, after: str) -> tuple[str, str, str]:
    """Return the name, and the old and the new version of an engine; both names where another took its place."""
    name, _, old = before.partition(" ")
    same, _, new = after.partition(" ")
    return (name, old, new) if name == same else ("engine", before, after)


def _since(before: Bench, row: Bench) -> str:
    """Name what was upgraded between two benchmarks."""
    changed = [
        f"{name} {old} -> {new}"
        for name, old, new in (
            _engines(before.engine, row.engine),
            ("mlx", before.mlx, row.mlx),
            ("weights", before.revision[:7], row.revision[:7]),
        )
        if old != new
    ]
    return f" since {', '.join(changed)}" if changed else ""
