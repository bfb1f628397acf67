"""Turn what was downloaded into weights for this machine. Runs in a child process: it needs mlx.core.

`convert` makes MLX weights out of a repo, with mlx-lm's own program and a log of its own. A recipe fits MLX weights to
the backend: MLX's CPU backend multiplies quantized float32 one by one but has no fast path for half types. A 1536 x 576
layer of 4-bit weights takes 1.0 ms with float32 scales, 6.4 ms with bfloat16 and 28 ms with float16 (AMD EPYC,
mlx 0.32.4). Dense bfloat16 is as fast as dense float32 and half the size, so it stays. On Metal half types are the fast
ones: nothing is done there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from catalog import config_json
from catalog.config_json import Packing, Quantization
from state.errors import MlxqError, NotFound, UsageProblem
from tasks.weights.formats import headers

_QUANTS: dict[str, tuple[str, ...]] = {
    "int4": ("-q", "--q-bits", "4", "--q-group-size", "64"),
    "int8": ("-q", "--q-bits", "8", "--q-group-size", "64"),
    "bf16": ("--dtype", "bfloat16"),
}
_SHARE = {"int4": 4.5 / 16, "int8": 8.5 / 16, "bf16": 1.0}
"""Size of the result to a source of 16 bits: groups of 64 add half a bit of scales."""
_LARGEST_GROUP = 1024
"""Above every group that MLX knows; a trial of a larger one would take memory."""


def result_bytes(quant: str, source_bytes: int) -> int:
    """Return about how many bytes the conversion of a 16-bit model will take. Raises UsageProblem."""
    check(quant)
    return round(source_bytes * _SHARE[quant])


def check(quant: str) -> None:
    """Raise UsageProblem for a quant that cannot be made."""
    if quant not in _QUANTS:
        raise UsageProblem(f"mlxq cannot convert to {quant!r}; it can to {', '.join(_QUANTS)}.")


def convert(source: Path, target: Path, quant: str, log: Path) -> None:
    """Convert the folder `source` into the folder `target`, which is new. Raises MlxqError with the log's last line."""
    if target.exists():  # what a killed run left; mlx_lm refuses a folder that exists
        shutil.rmtree(target)
    command = [sys.executable, "-P", "-m", "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(target)]
    with log.open("w", encoding="utf-8") as output:
        ran = subprocess.run(
            [*command, *_QUANTS[quant]], stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if ran.returncode:
        raise _failure(ran.returncode, log)


def _failure(code: int, log: Path) -> MlxqError:
    lines = log.read_text(errors="replace").strip().splitlines()
    return MlxqError(
        f"mlx_lm convert ended with code {code}: {lines[-1] if lines else 'it said nothing'}",
        done="The fetched files were kept.",
        hint=f"less {log}",
    )


def check_packing(subject: str, quantization: Quantization) -> None:
    """Raise NotFound, in MLX's own words, when it cannot unpack what the model `subject` says of its quantization."""
    import mlx.core as mx

    for packing in dict.fromkeys([Packing(**_fields(quantization)), *quantization.modules.values()]):
        try:
            if packing.group_size > _LARGEST_GROUP:
                raise ValueError(f"a group size of {packing.group_size}")  # noqa: TRY301 (told as MLX's own refusal is)
            mx.eval(mx.quantize(mx.zeros((1, 32 * packing.group_size)), **_fields(packing)))
        except ValueError as problem:
            raise NotFound(
                f"{subject} is quantized in a way that MLX {version('mlx')} cannot load: {problem}."
            ) from problem


def _fields(packing: Packing) -> dict[str, Any]:
    return {"bits": packing.bits, "group_size": packing.group_size, "mode": packing.mode}


Recipe = Literal["f32-scales"]
ConversionBackend = Literal["metal", "cuda", "cpu"]


def backend() -> ConversionBackend:
    """Return the back end that MLX uses on this machine."""
    import mlx.core as mx

    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


def choose_recipe(conversion_backend: ConversionBackend, folder: Path) -> Recipe | None:
    """Return what to do with the weights in `folder` for the back end, or None for nothing."""
    config = config_json.read(headers.read_json(folder / "config.json"))
    return "f32-scales" if conversion_backend == "cpu" and config.quantization else None


def apply_recipe(recipe: Recipe | None, folder: Path) -> Sequence[str]:
    """Carry out the recipe and return the names of the files it changed; those it need not change stay."""
    if recipe is None:
        return ()
    return [path.name for path in sorted(folder.glob("*.safetensors")) if _lift(path)]


def _lift(path: Path) -> bool:
    """Make every half-precision tensor of one file float32. Return False when there is none."""
    import mlx.core as mx

    loaded: Any = mx.load(str(path))
    halves = (mx.float16, mx.bfloat16)
    if not any(tensor.dtype in halves for tensor in loaded.values()):
        return False
    lifted = {name: t.astype(mx.float32) if t.dtype in halves else t for name, t in loaded.items()}
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    mx.save_safetensors(str(temporary), lifted, metadata={"format": "mlx"})
    temporary.replace(path)
    return True
