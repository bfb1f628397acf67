"""What a listing of files must hold to be weights that MLX can load; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from state.errors import Damaged, NotFound

# What mlx_lm.utils and mlx_vlm.utils load, with the licence; Python files are untrusted code.
_WANTED = (
    *("*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.txt", "*.tiktoken"),
    *("tokenizer.model", "tiktoken.model", "LICENSE*", "NOTICE*"),
)
_CODE = ("*.py",)
_OTHERS = {".gguf": "GGUF (llama.cpp)", ".bin": "PyTorch", ".pt": "PyTorch", ".onnx": "ONNX", ".mlmodel": "Core ML"}


def choose(names: Iterable[str], *, code: bool = False) -> list[str]:
    """Return the files to fetch out of a listing: those at its top that a loader reads; `*.py` only with `code`.

    Raises Damaged when a name would leave the folder.
    """
    patterns = (*_WANTED, *_CODE) if code else _WANTED
    return [name for name in map(safe, names) if "/" not in name and any(fnmatchcase(name, p) for p in patterns)]


def safe(name: str) -> str:
    """Return the name unchanged when it stays inside the folder. Raises Damaged."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise Damaged(f"The file list names {name!r}, which is outside the folder.", done="Nothing was fetched.")
    return name


def check_loadable(subject: str, names: Sequence[str]) -> None:
    """Raise NotFound, saying what the files are instead, when they are no model that MLX can load."""
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return
    kinds = sorted({kind for name in names for end, kind in _OTHERS.items() if name.endswith(end)})
    problem = f"it holds {' and '.join(kinds)} files" if kinds else "it holds no config.json with *.safetensors"
    if any(name.endswith("adapter_config.json") for name in names):
        problem = "it holds an adapter (LoRA), not a whole model"
    raise NotFound(
        f"{subject} is not a model that MLX can load: {problem}.",
        done="Nothing was fetched.",
        hint="Look for a conversion at https://huggingface.co/mlx-community",
    )
