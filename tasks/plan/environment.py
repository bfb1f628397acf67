"""What every child process gets of the worker's environment, and the marks by which it is known as ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping

KEPT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)
"""What a child gets of the worker's environment: no tokens, no PYTHON* settings, nothing by accident."""


def kept(base: Mapping[str, str]) -> dict[str, str]:
    """Return what a child keeps of the environment `base`."""
    return {name: base[name] for name in KEPT if name in base}


def marker(home: str, service: str, generation: int) -> dict[str, str]:
    """Return the variables by which a process is known as ours, and for which start it was made."""
    return {"MLXQ_HOME": home, "MLXQ_SERVICE": service, "MLXQ_GENERATION": str(generation)}
