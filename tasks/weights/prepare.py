"""Fit weights to the back end that will run them. Runs in a child process: it needs mlx.core.

MLX's CPU back end multiplies quantised float32 one by one but has no fast path for half types: a
1536 x 576 layer of 4-bit weights takes 1.0 ms with float32 scales, 6.4 ms with bfloat16 and 28 ms with float16
(AMD EPYC, mlx 0.32.4). Dense bfloat16 is as fast as dense float32 and half the size, so it stays. On
Metal half types are the fast ones: nothing is done there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Recipe = Literal["f32-scales"]
ConversionBackend = Literal["metal", "cuda", "cpu"]


def backend() -> ConversionBackend:
    """Give the back end that MLX uses on this machine."""
    import mlx.core as mx

    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


def choose(found: ConversionBackend, folder: Path) -> Recipe | None:
    """Give what to do with the weights in `folder` for the back end, or None for nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "f32-scales" if found == "cpu" and "quantization" in config else None


def apply(recipe: Recipe | None, folder: Path) -> Sequence[str]:
    """Carry out the recipe and give the names of the files it changed; those it need not change stay."""
    if recipe is None:
        return ()
    return [path.name for path in sorted(folder.glob("*.safetensors")) if _lift(path)]


def _lift(path: Path) -> bool:
    """Make every half-precision tensor of one file float32. Gives False when there is none."""
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
