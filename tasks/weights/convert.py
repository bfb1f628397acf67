"""Make MLX weights of another kind out of a repo, with mlx-lm's own program in a child and its own log."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from state.errors import MlxqError, UsageProblem

_QUANTS: dict[str, tuple[str, ...]] = {
    "int4": ("-q", "--q-bits", "4", "--q-group-size", "64"),
    "int8": ("-q", "--q-bits", "8", "--q-group-size", "64"),
    "bf16": ("--dtype", "bfloat16"),
}
_SHARE = {"int4": 4.5 / 16, "int8": 8.5 / 16, "bf16": 1.0}
"""Size of the result to a source of 16 bits: groups of 64 add half a bit of scales."""


def result_bytes(quant: str, source_bytes: int) -> int:
    """Give about how many bytes the conversion of a 16-bit model will take. Raises UsageProblem."""
    check(quant)
    return round(source_bytes * _SHARE[quant])


def check(quant: str) -> None:
    """Raise UsageProblem for a quant that cannot be made."""
    if quant not in _QUANTS:
        raise UsageProblem(f"mlxq cannot convert to {quant!r}; it can to {', '.join(_QUANTS)}.")


def convert(source: Path, made: Path, quant: str, log: Path) -> None:
    """Convert the folder `source` into the folder `made`, which is new. Raises MlxqError with the log's last line."""
    if made.exists():  # what a killed run left; mlx_lm refuses a folder that exists
        shutil.rmtree(made)
    command = [sys.executable, "-P", "-m", "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(made)]
    with log.open("w", encoding="utf-8") as output:
        ran = subprocess.run(
            [*command, *_QUANTS[quant]], stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if ran.returncode:
        said = log.read_text(errors="replace").strip().splitlines()
        raise MlxqError(
            f"mlx_lm convert ended with code {ran.returncode}: {said[-1] if said else 'it said nothing'}",
            done="The fetched files were kept.",
            hint=f"less {log}",
        )
