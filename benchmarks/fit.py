"""Fit the constants of catalog/speed.json on data/speeds.csv; run it after rows were added.

Least squares of the log of predicted over measured, with a soft L1 loss so that odd rows pull little, and a
light pull of every constant to a plausible start: a constant that the rows say nothing about (a chip left
out) stays where it was. The work space of a prompt is fitted on data/peaks.csv and printed. Needs scipy, which the
engine brings.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from predict import (
    DATA,
    KINDS,
    QUANTS,
    RECENT,
    Peak,
    Row,
    known_peaks,
    mlx_version,
    number,
    read,
    read_peaks,
    usable,
    work,
)
from scipy.optimize import least_squares

from catalog.fit import Space
from catalog.load import entries
from catalog.model import Model
from catalog.speed import Work, decode_seconds

# A plausible start: "prompt accelerated" lies halfway between 1, as the estimate of fp16 in chips.yaml says, and 1.9,
# as Apple's own times to first token of M5 over M4 say (3.3 to 4.1 at twice the fp16; machinelearning.apple.com).
START: Mapping[str, Mapping[str, float]] = {
    "decode": {
        "token ms": 0.5,
        "token ms (llama.cpp)": 1,
        "layer ms": 0.03,
        "layer ms (llama.cpp)": 0.03,
        "served ms": 0.5,
        "gemma layer": 1.2,
        "recurrent layer": 1.3,
        "moe layer": 1.5,
        "two dies launch": 1.2,
        "bandwidth share": 0.85,
        "bandwidth share (llama.cpp)": 0.85,
        "two dies bandwidth (llama.cpp)": 0.9,
        "moe weights": 1.1,
        "cache": 1.2,
        "cache (llama.cpp)": 1.5,
        "asked cache": 0.1,
        "asked cache (llama.cpp)": 0.1,
        "soft cap": 3,
        "latent cache": 4,
        "compute": 4,
        "compute (llama.cpp)": 4,
        "decode aged recurrent": 1.1,
        "decode newest recurrent": 1,
    },
    "prompt": {
        "prompt share": 0.4,
        "prompt share (llama.cpp)": 0.35,
        "prompt moe": 0.7,
        "prompt recurrent": 0.8,
        "prompt recurrent accelerated": 0.8,
        "prompt fill": 32,
        "prompt generation": 1.1,
        "prompt accelerated": 1.4,
        "prompt accelerated (llama.cpp)": 0.6,
        "prompt served": 0.8,
        "prompt attention": 2,
        "prompt latent": 4,
        "prompt ancient": 1.1,
        "prompt aged recurrent": 1.1,
        "prompt newest recurrent": 1,
        "prompt attention accelerated": 0.5,
        "prompt scores": 8,
        "prompt soft cap": 2,
        "prompt tiles": 4,
        "prompt stream": 1,
        "prompt recurrent chunk": 1.2,
        "prompt chunk ms": 15,
        "prompt chunk ms (llama.cpp)": 5,
    },
}
PULL = {"decode": 0.15, "prompt": 2.0}
"""Weight of the pull to the start, beside one for each row; chosen for the lowest error on chips left out."""
NEW_WEIGHT = 3.0
"""Weight of a row measured on the installed version: such rows are few, and the others cover the chips."""
SOFT = {"decode": 0.08, "prompt": 0.12}
"""Log error from which a row counts linearly: about what two runs of the same thing differ by."""
SPACE_START = Space(flight=500e6, hidden=60, sparse=4, recurrent=90, kept=0.5)
"""Ten command buffers of 50 MB; a layer's activations as many times its width as a dense layer of Llama has."""
UNDER_WEIGHT = 1.75
"""Weight of a peak planned too low beside one too high: the first stops a Mac."""
SOFT_PEAK = 0.03
"""Relative error from which a peak counts linearly."""
BAND = (0.05, 0.95)


def stacked(rows: Iterable[Row]) -> Work:
    """Give the work of many rows at once, an array a field."""
    some = [work(row) for row in rows]
    return Work(**{name: np.array([getattr(row, name) for row in some], float) for name in Work._fields})


def fit(rows: list[Row], kind: str) -> dict[str, float]:
    """Give the constants that suit these rows best."""
    column, seconds = KINDS[kind]
    names, start = list(START[kind]), np.log(list(START[kind].values()))
    together, measured = stacked(rows), np.array([float(row[column]) for row in rows])
    weight = np.array([NEW_WEIGHT if mlx_version(row) >= RECENT else 1.0 for row in rows]) ** 0.5

    def residuals(logs: np.ndarray) -> np.ndarray:
        fitted = dict(zip(names, np.exp(logs), strict=True))
        return np.concatenate([weight * np.log(seconds(fitted, together) * measured), PULL[kind] * (logs - start)])

    best = least_squares(residuals, start, loss="soft_l1", f_scale=SOFT[kind], ftol=1e-5, xtol=1e-5)
    return dict(zip(names, (float(f"{one:.4g}") for one in np.exp(best.x)), strict=True))


def fit_space(peaks: list[Peak]) -> Space:
    """Return the work space of a chunk that suits these peaks best; SPACE of catalog/fit.py is that of all."""

    def residuals(logs: np.ndarray) -> np.ndarray:
        space = Space(*np.exp(logs))
        apart = np.array([peak.error(space) for peak in peaks])
        return np.where(apart < 0, UNDER_WEIGHT, 1) * apart

    start = np.log(dataclasses.astuple(SPACE_START))
    best = least_squares(residuals, start, loss="soft_l1", f_scale=SOFT_PEAK)
    return Space(*(float(f"{value:.3g}") for value in np.exp(best.x)))


def band(rows: list[Row], kind: str) -> list[float]:
    """Give the quantiles of measured over predicted, each chip predicted without itself."""
    column, seconds = KINDS[kind]
    ratios: list[float] = []
    for chip in sorted({row["chip"] for row in rows}):
        fitted = fit([row for row in rows if row["chip"] != chip], kind)
        ratios += [float(row[column]) * seconds(fitted, work(row)) for row in rows if row["chip"] == chip]
    return [round(float(np.quantile(ratios, edge)), 2) for edge in BAND]


def published(rows: list[Row]) -> dict[str, Any]:
    """Give what others measured with MLX, by model, quant and "chip/GPU cores": context, decode, prompt and source.

    Rows of a model count for every model of the same shape: Qwen3.8 27B runs as Qwen3.5 27B does.
    """
    found: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: float(row["context_tokens"] or 0)):
        quant = QUANTS.get(row["quant"])
        if row["engine"] in {"llama.cpp", "ollama"} or not row["context_tokens"] or not quant:
            continue
        for model in twins(row["geom"]):
            if quant in model.quants:
                machine = f"{row['chip']}/{row['gpu_cores']}"
                figures = [number(row, "context_tokens"), number(row, "gen_tps"), number(row, "prompt_tps")]
                place = found.setdefault(model.id, {}).setdefault(quant, {}).setdefault(machine, [])
                place.append([*figures, row["source"].partition(" ")[0].rstrip(",")])
    return found


def repeated(rows: list[Row], fitted: dict[str, float]) -> list[float]:
    """Give the quantiles of a measured decode speed over what the other rows of its machine, model and quant say."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        key = (row["chip"], row["gpu_cores"], row["geom"], row["quant"], row["engine"])
        groups.setdefault(key, []).append(math.log(float(row["gen_tps"]) * decode_seconds(fitted, work(row))))
    apart = [
        math.exp(one - (sum(some) - one) / (len(some) - 1)) for some in groups.values() if len(some) > 1 for one in some
    ]
    return [round(float(np.quantile(apart, edge)), 2) for edge in BAND]


def twins(geom: str) -> list[Model]:
    """Give the models of the catalog that have this geometry."""
    known = entries()
    if geom not in known:
        return []
    return [model for model in known.values() if shape(model) == shape(known[geom])]


def shape(model: Model) -> tuple[float, ...]:
    """Give what two models must share to run alike."""
    return model.layers, model.hidden_size, model.total_params_b


def main() -> None:
    """Write the constants and the published speeds; the rough figures for CPU and CUDA stay as they are."""
    path = DATA.parent.parent / "catalog" / "speed.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    rows = read(DATA / "speeds.csv")
    for kind in KINDS:
        told[kind] = fit(usable(rows, kind), kind)
    told["band"]["metal"] = band(usable(rows, "decode"), "decode")
    told["band"]["published"] = repeated(usable(rows, "decode"), told["decode"])
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"SPACE of catalog/fit.py: {fit_space(known_peaks(read_peaks(DATA / 'peaks.csv'), entries())[0])}")
    measured = json.dumps(published(usable(rows, "decode")), indent=1, sort_keys=True)
    (path.parent / "published.json").write_text(measured + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
