"""How far the predicted speeds are from measured ones.

    python benchmarks/predict.py                                  the shipped rows, with the shipped
    constants python benchmarks/predict.py --leave-one-chip-out             each chip predicted by constants
    fitted without it python benchmarks/predict.py --rows FILE.csv --json           any file with the
    columns of data/speeds.csv

The relative error is |predicted - measured| / measured. Rows marked suspect or measured with speculative
decoding are left out. Sources of the rows are in their `source` column.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from catalog.chips import identify
from catalog.speed import Constants, Work, constants, decode_seconds, generations_back, prompt_seconds

DATA = Path(__file__).parent / "data"
Row = Mapping[str, str]
PROMPT_OF_LLAMA_BENCH = 512
"""llama-bench's pp512: its rows give the context of the answer (64), not the length of the prompt."""
SHORTEST_PROMPT = 16
KINDS: dict[str, tuple[str, Callable[[Constants, Work], Any]]] = {
    "decode": ("gen_tps", decode_seconds),
    "prompt": ("prompt_tps", prompt_seconds),
}


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
    return {"layers": str(layers), "hidden": str(100 * layers), "full_layers": str(layers), "computed": "1"}


def number(row: Row, column: str) -> float:
    """Read a column as a number; 0 when it is empty."""
    return float(row[column] or 0)


def work(row: Row) -> Work:
    """Give what the formulas need to know of one measurement."""
    told, chip, kind = shape(row), row["chip"], row["arch"]
    llama = row["engine"] in {"llama.cpp", "ollama"}
    context = number(row, "context_tokens")
    bench = llama and context <= 64
    return Work(
        bandwidth=number(row, "bandwidth_gbps"),
        tflops=number(row, "fp16_tflops"),
        weights=number(row, "active_weight_gb"),
        kv=number(row, "kv_gb_at_ctx"),
        active=number(row, "active_b"),
        layers=number(told, "layers"),
        hidden=number(told, "hidden"),
        full_layers=number(told, "full_layers"),
        computed=number(told, "computed"),
        tokens=PROMPT_OF_LLAMA_BENCH if bench else max(context, SHORTEST_PROMPT),
        generations_back=generations_back(chip),
        moe=int("moe" in kind),
        recurrent=int("linear" in kind or "mamba" in kind),
        latent=int("mla" in kind),
        gemma=int(row["geom"].startswith("gemma")),
        softcap=int("gemma-2" in row["geom"]),
        two_dies=int("Ultra" in chip),
        accelerated=int(identify(chip).accelerated),
        served=int(row["engine"] in {"rapid-mlx", "vllm-mlx"}),
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


def left_out(rows: Iterable[Row], kind: str) -> list[float]:
    """Give the errors of each chip under constants fitted on all others."""
    from fit import fit

    some = usable(rows, kind)
    found: list[float] = []
    for chip in sorted({row["chip"] for row in some}):
        fitted = fit([row for row in some if row["chip"] != chip], kind)
        found += [error(row, kind, fitted) for row in some if row["chip"] == chip]
    return found


def summary(found: list[float]) -> dict[str, float | None]:
    """Give number, median and ninth decile; None for both when there is no row."""
    if not found:
        return {"n": 0, "median": None, "p90": None}
    tenths = statistics.quantiles(found, n=10, method="inclusive") if len(found) > 1 else found * 9
    return {"n": len(found), "median": round(statistics.median(found), 4), "p90": round(tenths[8], 4)}


def main() -> None:
    """Print the errors of one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=Path, default=DATA / "speeds.csv", help="a CSV file with the columns of speeds.csv"
    )
    parser.add_argument("--leave-one-chip-out", action="store_true", help="refit without each chip in turn")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    rows = read(asked.rows)
    judge = left_out if asked.leave_one_chip_out else errors
    told = {kind: summary(judge(rows, kind)) for kind in KINDS}
    if asked.json:
        print(json.dumps(told))
        return
    for kind, one in told.items():
        if not one["n"]:
            print(f"{kind:7}    0 rows")
            continue
        print(f"{kind:7} {one['n']:4} rows   median {one['median']:6.1%}   p90 {one['p90']:6.1%}")


if __name__ == "__main__":
    main()
