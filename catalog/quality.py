"""How good a model is, from published scores only, on one scale: the Artificial Analysis Intelligence Index 4.1."""

from __future__ import annotations

import math
from collections.abc import Mapping

from catalog.model import Model
from state.classes import dataclass


@dataclass(frozen=True)
class Quality:
    """Points of the index, and the score they come from; None when unrated."""

    points: float
    benchmark: str | None

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.points:.0f} by {self.benchmark}" if self.benchmark else "unrated"


LEAST = 3.0
"""The lowest points of a rated model; no unrated model reaches it."""
INDEX: tuple[tuple[str, str, float], ...] = (
    ("aa_index_4_1", "Artificial Analysis index", 1.0),
    ("aa_index_4_0", "Artificial Analysis index 4.0", 0.76),
)
"""The overall index, newest first: benchmark, its name, and what carries it over to 4.1. Version 4.1 (16 June 2026) has
harder agentic tests: it gives Qwen3.6 35B-A3B 32 where 4.0 gave 43."""
CODING: tuple[tuple[str, str, float, float], ...] = (
    ("swe_bench_verified", "SWE-bench Verified", 0.75, -23.0),
    ("bfcl_v4", "BFCL v4", 0.45, -3.0),
)
"""What measures the work of agents: benchmark, its name, and the line over the models that have the index too."""
ODDS_SLOPE, ODDS_OFFSET = 17.0, 0.5
"""Carries the log odds of GPQA Diamond over to the index: within 2 points for the ten models of the catalog that have
both and are not Qwen3.8 27B, which the index puts 15 points higher."""
MMLU_SLOPE, MMLU_OFFSET = 1.49, -42.3
"""The line from MMLU-Pro to GPQA Diamond, in percent: least squares over the models that publish both."""
ROUNDING_COST = {
    **dict.fromkeys(("bf16", "fp16", "fp32", "mxfp4-q8"), 0.0),
    **dict.fromkeys(("int4", "mxfp4", "nvfp4"), 1.0),
    "int8": 0.06,
    "mxfp8": 0.1,
    "int7": 0.1,
    "int6": 0.2,
    "mxfp4-q4": 0.4,
    "int5": 0.5,
    "int3": 2.5,
    "int2": 6.0,
}
"""What a quant costs, in shares of what four bits cost. mxfp4-q8 is what gpt-oss was trained in."""
FOUR_BITS_AT_4B, SHRINKS = 0.10, -0.27
"""Share of the points that four bits cost a model of 4 billion parameters, and how that shrinks with size: twice what
MLX loses on MMLU-Pro (mlx-lm BENCHMARKS.md: Qwen3-4B 64.05 to 60.72, Qwen3-30B-A3B 72.62 to 70.71), for the index
spreads models at least twice as far apart."""


def quality(model: Model, *, agents: bool = False) -> Quality:
    """Return the quality by the best score there is.

    The overall index where it was published; for `agents` its mean with what coding and tool use give; then GPQA
    Diamond, MMLU-Pro and, for want of others, coding alone. An unrated model is ordered by size, below every rated one.
    """
    overall = _overall(model.scores)
    coding = _coding(model.scores)
    if overall and coding and agents:
        return Quality((overall.points + coding.points) / 2, f"{overall.benchmark} and {coding.benchmark}")
    return overall or coding or Quality(LEAST * model.total_params_b / (model.total_params_b + 100), None)


def _overall(scores: Mapping[str, float]) -> Quality | None:
    """Return what measures everything: the index, else what knowledge and reasoning say of it."""
    for benchmark, name, factor in INDEX:
        if benchmark in scores:
            return Quality(max(LEAST, factor * scores[benchmark]), name)
    if "gpqa_diamond" in scores:
        return Quality(_from_gpqa(scores["gpqa_diamond"]), "GPQA Diamond")
    if "mmlu_pro" in scores:
        return Quality(_from_gpqa(MMLU_SLOPE * scores["mmlu_pro"] + MMLU_OFFSET), "MMLU-Pro")
    return None


def _coding(scores: Mapping[str, float]) -> Quality | None:
    """Return what the first score of coding or tool use says."""
    for benchmark, name, slope, offset in CODING:
        if benchmark in scores:
            return Quality(max(LEAST, slope * scores[benchmark] + offset), name)
    return None


def _from_gpqa(percent: float) -> float:
    """Return the index that a score of GPQA Diamond stands for: percents bunch together near the top, odds do not."""
    right = min(99.0, max(1.0, percent)) / 100
    return max(LEAST, ODDS_SLOPE * math.log(right / (1 - right)) + ODDS_OFFSET)


def indexed(model: Model) -> bool:
    """Return whether an overall index was published for the model."""
    return any(benchmark in model.scores for benchmark, *_ in INDEX)


def worth(model: Model, quant: str, *, agents: bool = False) -> float:
    """Return the points that are left at this quant."""
    cost = ROUNDING_COST[quant] * FOUR_BITS_AT_4B * (model.total_params_b / 4) ** SHRINKS
    return quality(model, agents=agents).points * max(0.0, 1 - cost)
