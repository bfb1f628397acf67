"""How good a model is, from published scores only, on one scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from catalog.model import Model


@dataclass(frozen=True)
class Quality:
    """Points on the scale of GPQA Diamond (percent), and the score they come from; None when unrated."""

    points: float
    benchmark: str | None

    def __str__(self) -> str:
        """Say it to a person."""
        return f"{self.points:.0f} by {self.benchmark}" if self.benchmark else "unrated"


FALLBACKS: tuple[tuple[str, str, float, float], ...] = (
    ("gpqa_diamond", "GPQA Diamond", 1.0, 0.0),
    ("mmlu_pro", "MMLU-Pro", 1.49, -42.3),
    ("swe_bench_verified", "SWE-bench Verified", 0.39, 54.1),
)
"""In this order: benchmark, its name, and the line that carries it over to GPQA Diamond. The slopes and
offsets are least squares over the models of the catalog that publish both; SWE-bench is set 3 points low,
for it measures one kind of work."""
UNRATED_CEILING = 25.0
"""No unrated model counts above a rated one; the lowest rated has 30."""
ROUNDING_COST = {
    **dict.fromkeys(("bf16", "fp16", "mxfp4-q8"), 0.0),
    **dict.fromkeys(("int4", "mxfp4", "nvfp4"), 1.0),
    "int8": 0.06,
    "mxfp8": 0.1,
    "int6": 0.2,
    "mxfp4-q4": 0.4,
    "int5": 0.5,
    "int3": 2.5,
    "int2": 6.0,
}
"""What a quant costs, in shares of what four bits cost. mxfp4-q8 is what gpt-oss was trained in."""
FOUR_BITS_AT_4B, SHRINKS = 3.3, -0.27
"""Points four bits cost a model of 4 billion parameters, and how that shrinks with size. MMLU-Pro measured
on MLX (mlx-lm BENCHMARKS.md): Qwen3-4B 64.05, 63.85 at 8 bits, 60.72 at 4; Qwen3-30B-A3B 72.62, 72.46,
70.71."""


def quality(model: Model) -> Quality:
    """Give the quality by the first published score; an unrated model is ordered by size alone."""
    for benchmark, name, slope, offset in FALLBACKS:
        if benchmark in model.scores:
            return Quality(slope * model.scores[benchmark] + offset, name)
    return Quality(min(UNRATED_CEILING, 5 + 5 * model.total_params_b ** (1 / 3)), None)


def worth(model: Model, quant: str) -> float:
    """Give 20 times the log odds of a right answer at this quant.

    Percents bunch together near the top; odds do not. On this scale the Qwen3.5 family of 2B, 4B and 9B and
    Qwen3.8-27B stand at 5, 23, 30 and 42; the Artificial Analysis index gives them 16, 27, 32 and 52.
    """
    cost = ROUNDING_COST[quant] * FOUR_BITS_AT_4B * (model.total_params_b / 4) ** SHRINKS
    right = max(1.0, quality(model).points - cost) / 100
    return 20 * math.log(right / (1 - right))
