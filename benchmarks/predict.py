"""How far the predicted speeds are from measured ones.

    python benchmarks/predict.py                          the shipped rows, with the shipped constants
    python benchmarks/predict.py --leave-one-chip-out     each chip predicted by constants fitted without it
    python benchmarks/predict.py --held-out               the same by chip, source and family; speeds and peaks
    python benchmarks/predict.py --rows FILE.csv --json   any file with the columns of data/speeds.csv
    python benchmarks/predict.py --memory FILE.csv        peaks of memory: a file with the columns of data/peaks.csv

The relative error is |predicted - measured| / measured. Rows marked suspect or measured with speculative
decoding are left out. Sources of the rows are in their `source` column.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from catalog.chips import identify
from catalog.fit import MEASURED_STEP, SPACE, Space, peak
from catalog.load import entries, find
from catalog.model import Model
from catalog.problems import UnknownModel
from catalog.speed import Constants, Work, constants, decode_seconds, generations_back, prompt_seconds

DATA = Path(__file__).parent / "data"
Row = Mapping[str, str]
PROMPT_OF_LLAMA_BENCH = 512
"""llama-bench's pp512: its rows give the context of the answer (64), not the length of the prompt."""
SHORTEST_PROMPT = 16
ANCIENT, RECENT, NEWEST = (0, 30), (0, 31, 2), (0, 32)
"""Versions of MLX: before the first prompts are read slower, from the second on recurrent layers run faster; the third
is about what mlxq installs. A row that names no version counts as measured with the second."""
LONG_TOKENS = 65_536
"""Tokens from which a prompt counts as long."""
PEAK_COLUMNS = ("model", "quant", "context_tokens", "measured_peak_gb")
"""What a file of measured peaks must have; prefill_step may be left out."""
QUANTS = {
    "4bit": "int4",
    "q4": "int4",
    "6bit": "int6",
    "8bit": "int8",
    "q8": "int8",
    "bf16": "bf16",
    "mxfp4-q4": "mxfp4-q4",
    "mxfp4-q8": "mxfp4-q8",
}
"""What the rows call a quant of MLX, and what the catalog calls it."""
KINDS: dict[str, tuple[str, Callable[[Constants, Work], Any]]] = {
    "decode": ("gen_tps", decode_seconds),
    "prompt": ("prompt_tps", prompt_seconds),
}


def chip_of(row: Row) -> str:
    """Return the chip a row was measured on."""
    return row["chip"]


def source_of(row: Row) -> str:
    """Return the repository or page that a row was published in."""
    return re.split(r"[ ,@]", row["source"], maxsplit=1)[0]


def family_of(row: Row) -> str:
    """Return the name of a row's model up to its size: "qwen3.5" of qwen3.5-9b."""
    return re.split(r"-(?:a?\d+(?:\.\d+)?[bm]|e\db)\b", row.get("geom") or row["model"], maxsplit=1)[0]


GROUPS: Mapping[str, Callable[[Row], str]] = {"chip": chip_of, "source": source_of, "family": family_of}
"""What rows are left out by, together: a predictor that has learned its rows by heart fails on a group never seen."""


def usable(rows: Iterable[Row], kind: str) -> list[Row]:
    """Give the rows that measured this kind of speed and are fit for comparison."""
    column = KINDS[kind][0]
    return [
        row for row in rows
        if number(row, column) > 0 and not number(row, "suspect") and not number(row, "spec_decode")
    ]  # fmt: skip


def read(path: Path) -> list[Row]:
    """Read a file with the columns of speeds.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def geometry() -> dict[str, Row]:
    """Give layers, hidden size, full-attention layers and computed share of each `geom`."""
    return {row["geom"]: row for row in read(DATA / "geometry.csv")}


def shape(row: Row) -> Row:
    """Give the geometry of a row; an unlisted model gets a usual shape of its number of active parameters."""
    known = geometry().get(row["geom"])
    if known:
        return known
    layers = round(36 * (float(row["active_b"]) / 8) ** 0.25)
    width = str(100 * layers)
    usual = {"layers": str(layers), "hidden": width, "full_layers": str(layers), "computed": "1", "attend": width}
    spread = "16" if "moe" in row["arch"] else "1"
    return usual | {"heads": str(layers), "unfused": "0", "spread": spread, "idle_b": "0"}


def mlx_version(row: Row) -> tuple[int, ...]:
    """Return the version of MLX a row was measured with, from its column or its note; empty where neither says."""
    noted = re.search(r"\bmlx (\d+(?:\.\d+)+)", row.get("note", ""))
    version = row.get("mlx", "") or (noted.group(1) if noted else "")
    return tuple(int(part) for part in version.split(".")) if version else ()


def number(row: Row, column: str) -> float:
    """Read a column as a number; 0 when it is empty."""
    return float(row[column] or 0)


def work(row: Row) -> Work:
    """Give what the formulas need to know of one measurement."""
    told, chip, kind = shape(row), row["chip"], row["arch"]
    llama = row["engine"] in {"llama.cpp", "ollama"}
    context = number(row, "context_tokens")
    version = mlx_version(row)
    bench = llama and context <= 64
    return Work(
        bandwidth=number(row, "bandwidth_gbps"),
        tflops=number(row, "fp16_tflops"),
        weights=number(row, "active_weight_gb"),
        kv=number(row, "kv_gb_at_ctx"),
        active=number(row, "active_b"),
        everything=number(row, "active_weight_gb") * number(row, "total_b") / number(row, "active_b"),
        idle=number(told, "idle_b") / number(row, "active_b"),
        spread=number(told, "spread"),
        layers=number(told, "layers"),
        attend=number(told, "attend"),
        scores=number(told, "heads") * number(told, "unfused") * (1 - int(llama)),
        full_layers=number(told, "full_layers"),
        computed=number(told, "computed"),
        tokens=PROMPT_OF_LLAMA_BENCH if bench else max(context, SHORTEST_PROMPT),
        context=context,
        generations_back=generations_back(chip),
        moe=int("moe" in kind),
        recurrent=int("linear" in kind or "mamba" in kind),
        latent=int("mla" in kind),
        gemma=int(row["geom"].startswith("gemma")),
        softcap=int("gemma-2" in row["geom"]),
        two_dies=int("Ultra" in chip),
        accelerated=int(identify(chip).accelerated),
        served=int(row["engine"] in {"rapid-mlx", "vllm-mlx"}),
        ancient=int(bool(version) and version < ANCIENT),
        aged=int(bool(version) and version < RECENT),
        newest=int(version >= NEWEST),
        llama=int(llama),
    )


def error(row: Row, kind: str, fitted: Constants) -> float:
    """Give the relative error of one row."""
    column, seconds = KINDS[kind]
    measured = float(row[column])
    return abs(1 / seconds(fitted, work(row)) - measured) / measured


def errors(rows: Iterable[Row], kind: str) -> list[float]:
    """Give the errors with the shipped constants."""
    return [error(row, kind, constants()[kind]) for row in usable(rows, kind)]


def left_out(rows: Iterable[Row], kind: str, group: Callable[[Row], str] = chip_of) -> list[float]:
    """Return the errors of each group of rows under constants fitted on all others."""
    from fit import fit

    some = usable(rows, kind)
    apart: list[float] = []
    for name in sorted({group(row) for row in some}):
        fitted = fit([row for row in some if group(row) != name], kind)
        apart += [error(row, kind, fitted) for row in some if group(row) == name]
    return apart


def summary(found: list[float]) -> dict[str, float | None]:
    """Give number, median and ninth decile; None for both when there is no row."""
    if not found:
        return {"n": 0, "median": None, "p90": None}
    tenths = statistics.quantiles(found, n=10, method="inclusive") if len(found) > 1 else found * 9
    return {"n": len(found), "median": round(statistics.median(found), 4), "p90": round(tenths[8], 4)}


@dataclass(frozen=True)
class Peak:
    """One measured peak of memory of a model of the catalog."""

    row: Row
    model: Model
    quant: str

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return int(number(self.row, "context_tokens"))

    def error(self, space: Space = SPACE) -> float:
        """Return the signed relative error of the prediction."""
        step = int(number(self.row, "prefill_step")) or MEASURED_STEP
        planned = peak(self.model, self.quant, self.tokens, step, space)
        return planned / 1e9 / number(self.row, "measured_peak_gb") - 1


def known_peaks(rows: Iterable[Row], known: Mapping[str, Model]) -> tuple[list[Peak], int]:
    """Return the peaks of `known` models, and how many rows name a model or quant that is not.

    A row has model, quant, context_tokens, prefill_step (empty: mlx-lm's default) and measured_peak_gb (1e9 bytes).
    """
    peaks: list[Peak] = []
    unknown = 0
    for row in rows:
        model = _model_of(row["model"], known)
        quant = QUANTS.get(row["quant"].lower(), row["quant"].lower())
        if model is None or quant not in model.quants:
            unknown += 1
            continue
        peaks.append(Peak(row, model, quant))
    return peaks, unknown


def peaks_left_out(peaks: list[Peak], group: Callable[[Row], str]) -> list[float]:
    """Return the signed errors of each group of peaks under constants fitted on all others."""
    from fit import fit_space

    apart: list[float] = []
    for name in sorted({group(some.row) for some in peaks}):
        space = fit_space([some for some in peaks if group(some.row) != name])
        apart += [some.error(space) for some in peaks if group(some.row) == name]
    return apart


def _model_of(name: str, known: Mapping[str, Model]) -> Model | None:
    """Return the model of a name, or None where the catalog does not have it."""
    try:
        return find(name, known)
    except UnknownModel:
        return None


def read_peaks(path: Path) -> list[Row]:
    """Read a file of measured peaks. Raises ValueError with the missing column, or the line without a figure."""
    rows = read(path)
    for line, row in enumerate(rows, start=2):
        for column in PEAK_COLUMNS:
            if row.get(column) is None:
                raise ValueError(f"{path}: there is no column {column}; needed are {', '.join(PEAK_COLUMNS)}.")
        for column in ("context_tokens", "measured_peak_gb"):
            if not _positive(row[column]):
                raise ValueError(f"{path}, line {line}: {column} is {row[column]!r}, no number above 0.")
    return [{"prefill_step": "", **row} for row in rows]


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def memory_summary(path: Path) -> dict[str, Any]:
    """Return {"all", "long": {"n", "median", "p90"}, "unknown", "lowest", "highest"} of a file of measured peaks."""
    peaks, unknown = known_peaks(read_peaks(path), entries())
    judged = [(peak.tokens, peak.error()) for peak in peaks]
    signed = [error for _, error in judged]
    return {
        "all": summary([abs(error) for error in signed]),
        "long": summary([abs(error) for tokens, error in judged if tokens >= LONG_TOKENS]),
        "unknown": unknown,
        "lowest": round(min(signed), 4) if signed else None,
        "highest": round(max(signed), 4) if signed else None,
    }


def held_out() -> dict[str, dict[str, Any]]:
    """Return the errors of the shipped rows, each group left out in turn: {"chip": {"decode": summary, …}, …}.

    Peaks of long prompts were never fitted on; they count to no group.
    """
    rows = read(DATA / "speeds.csv")
    peaks, _ = known_peaks(read_peaks(DATA / "peaks.csv"), entries())
    told: dict[str, dict[str, Any]] = {}
    for name, group in GROUPS.items():
        told[name] = {kind: summary(left_out(rows, kind, group)) for kind in KINDS}
        signed = peaks_left_out(peaks, group)
        told[name]["peak"] = summary([abs(error) for error in signed]) | {"lowest": round(min(signed), 4)}
    return told


def print_memory(told: Mapping[str, Any]) -> None:
    """Print what `memory_summary` found."""
    for name in ("all", "long"):
        part = told[name]
        if part["n"]:
            print(f"{name:7} {part['n']:4} peaks  median {part['median']:6.1%}   p90 {part['p90']:6.1%}")
    if told["lowest"] is not None:
        print(f"from {told['lowest']:+.1%} to {told['highest']:+.1%}; {told['unknown']} of models not in the catalog")


def main() -> None:
    """Print the errors of one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=Path, default=DATA / "speeds.csv", help="a CSV file with the columns of speeds.csv"
    )
    parser.add_argument("--leave-one-chip-out", action="store_true", help="refit without each chip in turn")
    parser.add_argument("--held-out", action="store_true", help="refit without each chip, source and family in turn")
    parser.add_argument("--memory", type=Path, help="a CSV file of measured peaks, as data/peaks.csv")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    if asked.memory:
        try:
            peaks = memory_summary(asked.memory)
        except (OSError, ValueError) as problem:
            parser.error(str(problem))
        print(json.dumps(peaks)) if asked.json else print_memory(peaks)
        return
    if asked.held_out:
        apart = held_out()
        print(json.dumps(apart)) if asked.json else print_held_out(apart)
        return
    rows = read(asked.rows)
    judge = left_out if asked.leave_one_chip_out else errors
    told = {kind: summary(judge(rows, kind)) for kind in KINDS}
    print(json.dumps(told)) if asked.json else print_speeds(told)


def print_held_out(told: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what `held_out` found."""
    for group, kinds in told.items():
        print(f"without each {group}:")
        print_speeds(kinds)


def print_speeds(told: Mapping[str, Any]) -> None:
    """Print number, median and ninth decile of each kind of row."""
    for kind, part in told.items():
        if not part["n"]:
            print(f"{kind:7}    0 rows")
            continue
        print(f"{kind:7} {part['n']:4} rows   median {part['median']:6.1%}   p90 {part['p90']:6.1%}")


if __name__ == "__main__":
    main()
