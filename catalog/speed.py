"""How fast a model answers on a machine: tokens a second, with a range and what it rests on.

One token of an answer costs the time to launch its layers, to stream the active weights and the cache from
memory, and to compute; one token of a prompt costs arithmetic, attention over what came before, and its
share of launching a chunk. The constants are fitted by benchmarks/fit.py on benchmarks/data/speeds.csv and
kept in speed.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from catalog.chips import identify
from catalog.fit import cache_bytes, query_heads, score_bytes, text_bytes
from catalog.load import entries
from catalog.machine import Machine
from catalog.model import Model
from state.classes import dataclass

Constants = Mapping[str, float]
REFERENCE_GENERATION = 4
REFERENCE_LAYERS = 32
LATENT_HEAD = 256
"""Size of a head of the models with a compressed cache (MLA)."""
MEASURED_CHUNK = 2048
"""Tokens of prompt at once in the measurements the constants are fitted on: mlx-lm's default."""


class Work(NamedTuple):
    """What the formulas need to know of one measurement; a number each, or an array each when fitting.

    Sizes in 1e9 bytes, parameters in billions, bandwidth in GB/s, tflops in fp16 TFLOPS. Flags are 0 or 1.
    """

    bandwidth: Any
    tflops: Any
    weights: Any
    """Active weights a token streams."""
    kv: Any
    """Cache at this context."""
    active: Any
    everything: Any
    """All weights, which a chunk of prompt streams once."""
    idle: Any
    """Share of the active weights that no token streams: an input embedding of its own."""
    spread: Any
    """Experts to each that a token uses; 1 without experts."""
    layers: Any
    attend: Any
    """Query heads times their size, in a full-attention layer."""
    scores: Any
    """Query heads whose scores are written down; 0 where attention is fused."""
    full_layers: Any
    computed: Any
    """Share of the layers that a prompt passes; below 1 where later layers reuse earlier caches."""
    tokens: Any
    """Tokens of the prompt."""
    context: Any
    """Tokens before the answer; for llama.cpp's benchmarks not those of the prompt."""
    generations_back: Any
    """How many generations before the M4; 0 from then on."""
    moe: Any
    recurrent: Any
    latent: Any
    gemma: Any
    """Gemma's layers have twice the norms of others."""
    softcap: Any
    """Gemma 2's attention with a soft cap runs unfused."""
    two_dies: Any
    accelerated: Any
    served: Any
    """Measured through a batching server rather than a bare loop."""
    ancient: Any
    """Measured with MLX before 0.30."""
    aged: Any
    """Measured with MLX before 0.31.2, which runs recurrent layers slower."""
    newest: Any
    """Measured with MLX from 0.32 on."""
    llama: Any
    """Measured with llama.cpp or Ollama's use of it, which only the fit needs."""


@dataclass(frozen=True)
class Measured:
    """One benchmark saved on this machine; tokens a second, prompt 0 when not measured."""

    model: str
    quant: str
    context: int
    decode: float
    prompt: float = 0.0


@dataclass(frozen=True)
class Speed:
    """Tokens a second; `low` to `high` holds nine of ten measured decode speeds."""

    decode: float
    prompt: float
    low: float
    high: float
    basis: str
    """"measured here", "calibrated here", "published", "predicted", or "rough guess" where nothing was fitted."""
    source: str = ""
    """Who published it; empty unless `basis` is "published"."""


@cache
def constants() -> dict[str, Any]:
    """Read the fitted constants, the bands and the rough figures for CPU and CUDA."""
    with (Path(__file__).parent / "speed.json").open(encoding="utf-8") as file:
        return json.load(file)


def _by_engine(c: Constants, name: str, work: Work) -> Any:
    return c[name] + (c[f"{name} (llama.cpp)"] - c[name]) * work.llama


def decode_seconds(c: Constants, work: Work) -> Any:
    """Return the seconds one token of an answer takes."""
    layers = work.layers * c["gemma layer"] ** work.gemma * c["recurrent layer"] ** work.recurrent
    launch = _by_engine(c, "token ms", work) + layers * _by_engine(c, "layer ms", work) * c["moe layer"] ** work.moe
    launch = (launch + c["served ms"] * work.served) * c["two dies launch"] ** work.two_dies
    bandwidth = work.bandwidth * c["two dies bandwidth (llama.cpp)"] ** (work.two_dies * work.llama)
    streamed = work.weights * (1 - work.idle) * c["moe weights"] ** work.moe
    weights = streamed / (bandwidth * _by_engine(c, "bandwidth share", work))
    attend = _by_engine(c, "cache", work) * c["soft cap"] ** work.softcap * c["latent cache"] ** work.latent
    compute = _by_engine(c, "compute", work) * work.active / (work.tflops * 1000)
    queried = 4 * work.context * work.attend * work.full_layers / 1e9
    cache = (attend * work.kv + _by_engine(c, "asked cache", work) * queried) / bandwidth
    seconds = launch / 1000 + weights + cache + compute
    return seconds * _version(c, "decode", work)


def prompt_seconds(c: Constants, work: Work) -> Any:
    """Return the seconds one token of a prompt of `work.tokens` tokens takes, on average over the prompt."""
    share = _by_engine(c, "prompt share", work) * c["prompt moe"] ** work.moe * c["prompt recurrent"] ** work.recurrent
    share = share * c["prompt generation"] ** (-work.generations_back * (1 - work.llama))
    share = share * _by_engine(c, "prompt accelerated", work) ** work.accelerated * c["prompt served"] ** work.served
    share = share * c["prompt recurrent accelerated"] ** (work.recurrent * work.accelerated)
    chunk = _least(work.tokens, MEASURED_CHUNK)
    share = share * chunk / (chunk + c["prompt fill"] * work.accelerated)
    arithmetic = 2 * work.active * work.computed / (work.tflops * 1000 * share) * _padding(c, work)
    arithmetic = arithmetic * _version(c, "prompt", work) * c["prompt ancient"] ** work.ancient
    return arithmetic + _attention_seconds(c, work) + _chunk_seconds(c, work)


def _version(c: Constants, kind: str, work: Work) -> Any:
    """Return how much longer recurrent layers take than with MLX 0.31.2."""
    aged, newest = c[f"{kind} aged recurrent"], c[f"{kind} newest recurrent"]
    return aged ** (work.aged * work.recurrent) * newest ** (work.newest * work.recurrent)


def _padding(c: Constants, work: Work) -> Any:
    """Return how much work a chunk is for each expert's share of it: few tokens an expert fill its tiles badly."""
    chunk = _least(work.tokens, MEASURED_CHUNK)
    return 1 + c["prompt tiles"] * (work.spread - 1) / chunk


def _attention_seconds(c: Constants, work: Work) -> Any:
    """Return the share of a token in attending to what came before, and in writing scores down where that is done."""
    earlier = 2 * work.tokens * work.attend * work.full_layers / (work.tflops * 1e12)
    scores = work.tokens * work.scores * work.full_layers / (work.bandwidth * 1e9)
    scores = scores * c["prompt soft cap"] ** work.softcap
    quicker = c["prompt attention accelerated"] ** work.accelerated
    return c["prompt attention"] * c["prompt latent"] ** work.latent * earlier * quicker + c["prompt scores"] * scores


def _chunk_seconds(c: Constants, work: Work) -> Any:
    """Return the share of a token in launching its chunk and streaming all weights for it."""
    chunks = -(-work.tokens // MEASURED_CHUNK)
    touched = 1 - (1 - 1 / work.spread) ** _least(work.tokens, MEASURED_CHUNK) * (work.spread > 1)
    stream = c["prompt stream"] * work.everything * touched / work.bandwidth
    layers = work.layers / REFERENCE_LAYERS * c["prompt recurrent chunk"] ** work.recurrent
    launch = _by_engine(c, "prompt chunk ms", work) / 1000 * layers
    return (launch + stream) * chunks / work.tokens


def _least(value: Any, most: int) -> Any:
    """Return the smaller of the two, also for an array when fitting."""
    return value - (value - most) * (value > most)


def _work(machine: Machine, model: Model, quant: str, context: int) -> Work:
    attention, heads, text = model.attention, query_heads(model), text_bytes(model, quant) / 1e9
    own = attention.full + attention.sliding + attention.recurrent
    return Work(
        bandwidth=machine.bandwidth_gbps,
        tflops=machine.fp16_tflops,
        weights=text * model.active_params_b / model.text_params_b,
        kv=cache_bytes(model, context) / 1e9,
        active=model.active_params_b,
        everything=text,
        idle=model.input_params_b / model.active_params_b,
        spread=model.expert_spread,
        layers=model.layers,
        attend=heads * (attention.full_head_dim or attention.head_dim or LATENT_HEAD),
        scores=heads if score_bytes(model, 1, 1) else 0,
        full_layers=attention.full,
        computed=own / model.layers if model.architecture == "transformer-ple" else 1,
        tokens=max(context, 1),
        context=max(context, 1),
        generations_back=generations_back(machine.chip),
        moe=int(model.moe),
        recurrent=int(attention.recurrent > 0),
        latent=int(attention.latent > 0),
        gemma=int(model.family.startswith("Gemma")),
        softcap=0,
        two_dies=int("Ultra" in machine.chip),
        accelerated=_accelerated(machine.chip),
        served=1,
        ancient=0,
        aged=0,
        newest=1,
        llama=0,
    )


@cache
def _accelerated(chip: str) -> int:
    """Return whether a chip has neural accelerators in its GPU."""
    return int(identify(chip).accelerated)


def generations_back(chip: str) -> int:
    """Say how many generations before the M4 a chip is; 0 from then on and for a chip that is no Apple M."""
    digits = chip.partition(" ")[0].removeprefix("M")
    return max(0, REFERENCE_GENERATION - int(digits)) if chip.startswith("M") and digits.isdigit() else 0


def _raw(machine: Machine, model: Model, quant: str, context: int) -> tuple[float, float]:
    """Return decode and prompt speed as predicted, tokens a second."""
    if machine.backend == "cpu":
        rough = constants()["cpu"]
        return rough["decode params/s"] / 1e9 / model.active_params_b, rough[
            "prompt params/s"
        ] / 1e9 / model.active_params_b
    if machine.backend == "cuda":
        rough = constants()["cuda"]
        work = _work(machine, model, quant, context)
        step = rough["token ms"] / 1000 + (work.weights + work.kv) / (work.bandwidth * rough["bandwidth share"])
        return 1 / step, work.tflops * 1000 * rough["prompt share"] / (2 * work.active)
    work = _work(machine, model, quant, context)
    return 1 / decode_seconds(constants()["decode"], work), 1 / prompt_seconds(constants()["prompt"], work)


def predict(
    machine: Machine,
    model: Model,
    quant: str,
    context: int,
    measured: Sequence[Measured] = (),
    *,
    models: Mapping[str, Model] | None = None,
) -> Speed:
    """Return how fast `model` answers on `machine` once a prompt of `context` tokens was read.

    The prompt speed is the average over that prompt. `measured` are benchmarks of this machine. One of this very model
    and quant gives the figure itself; those of other models (looked up in `models`, else among the shipped ones) shift
    the prediction by their mean ratio k, shrunk to k^(n/(n+1)) for n of them. Raises KeyError when the model has no
    such quant.
    """
    return predict_all(machine, model, quant, (context,), measured, models=models)[context]


def predict_all(
    machine: Machine,
    model: Model,
    quant: str,
    contexts: Iterable[int],
    measured: Sequence[Measured] = (),
    *,
    models: Mapping[str, Model] | None = None,
) -> dict[int, Speed]:
    """Return what `predict` says, by context. Raises KeyError when the model has no such quant."""
    shift = _shift(machine, model, quant, measured, models)
    low, high = constants()["band"][shift.band]
    tighter = 1 / math.sqrt(1 + shift.benchmarks)
    speeds: dict[int, Speed] = {}
    for context in contexts:
        raw = _raw(machine, model, quant, context)
        decode, prompt = raw[0] * shift.decode, raw[1] * shift.prompt
        around = decode * low**tighter, decode * high**tighter
        speeds[context] = Speed(decode, prompt, *around, shift.basis, shift.source)
    return speeds


@dataclass(frozen=True)
class _Shift:
    """What measurements change of a prediction."""

    decode: float
    prompt: float
    basis: str
    band: str
    source: str = ""
    benchmarks: int = 0
    """Benchmarks of this machine, each of which narrows the range."""


def _shift(
    machine: Machine, model: Model, quant: str, measured: Sequence[Measured], models: Mapping[str, Model] | None
) -> _Shift:
    """Return the factors on decode and prompt speed: of this very model and quant, else of others here, else 1."""
    same = [benchmark for benchmark in measured if (benchmark.model, benchmark.quant) == (model.id, quant)]
    if same:
        return _carried(machine, model, same, "measured here")
    if ratios := _ratios(machine, measured, models or entries()) if measured else []:
        decode, prompt = _shrunk([d for d, _ in ratios]), _shrunk([p for _, p in ratios if p])
        return _Shift(decode, prompt, "calibrated here", _band(machine), benchmarks=len(ratios))
    published, source = _published(machine, model, quant)
    if published:
        return replace(_carried(machine, model, published, "published"), source=source)
    return _Shift(1.0, 1.0, "predicted" if machine.backend == "metal" else "rough guess", _band(machine))


def _band(machine: Machine) -> str:
    """Name how far a prediction may be off: it was fitted on Metal."""
    return "metal" if machine.backend == "metal" else "rough"


def _carried(machine: Machine, model: Model, same: Sequence[Measured], basis: str) -> _Shift:
    """Return the factors that benchmarks of this very model and quant give, whatever their context."""
    ratios = [_ratio(machine, model, benchmark.quant, benchmark) for benchmark in same]
    return _Shift(_mean([d for d, _ in ratios]), _mean([p for _, p in ratios if p]), basis, basis)


@cache
def _table() -> dict[str, Any]:
    """Read what others measured, by model, quant and "chip/GPU cores"; benchmarks/fit.py writes it."""
    with (Path(__file__).parent / "published.json").open(encoding="utf-8") as file:
        return json.load(file)


def _published(machine: Machine, model: Model, quant: str) -> tuple[list[Measured], str]:
    """Return the measurements others published of this model on this very bin, and where."""
    rows = _table().get(model.id, {}).get(quant, {}).get(f"{machine.chip}/{machine.gpu_cores}", [])
    benchmarks = [Measured(model.id, quant, int(tokens), decode, prompt) for tokens, decode, prompt, _ in rows]
    return benchmarks, ", ".join(sorted({source for *_, source in rows}))


def _ratio(machine: Machine, model: Model, quant: str, benchmark: Measured) -> tuple[float, float]:
    """Return measured over predicted, for decode and for prompt (0 when that was not measured)."""
    decode, prompt = _raw(machine, model, quant, benchmark.context)
    return benchmark.decode / decode, benchmark.prompt / prompt


def _ratios(machine: Machine, measured: Sequence[Measured], models: Mapping[str, Model]) -> list[tuple[float, float]]:
    comparable = [
        benchmark
        for benchmark in measured
        if benchmark.model in models and benchmark.quant in models[benchmark.model].quants
    ]
    return [_ratio(machine, models[benchmark.model], benchmark.quant, benchmark) for benchmark in comparable]


def _mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean; 1 of none."""
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios)) if ratios else 1.0


def _shrunk(ratios: Sequence[float]) -> float:
    """Draw the mean ratio of n benchmarks towards 1: k^(n/(n+1))."""
    return _mean(ratios) ** (len(ratios) / (len(ratios) + 1))
