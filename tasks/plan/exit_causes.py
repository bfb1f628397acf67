"""Why a service ended: exit code and last log lines become a cause that the user can act on. Pure.

What one engine alone says is in its adapter (tasks/engines). An exit code alone says little: uvicorn ends with 3 for a
taken port and for truncated weights alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from state.classes import dataclass

OOM = "out_of_memory"


@dataclass(frozen=True)
class Cause:
    """Why a service ended."""

    code: str
    sentence: str
    hint: str
    permanent: bool
    """Whether another try would end the same way."""


@dataclass(frozen=True)
class CauseRule:
    """One row of the table: applies when `marker` is in the log and the exit code is one of `codes`."""

    code: str
    sentence: str
    hint: str
    permanent: bool
    marker: str = ""
    codes: tuple[int, ...] = ()

    def cause(self, exit_code: int | None, log: str, service: str) -> Cause | None:
        """Return the cause when the rule applies; {0} in the sentence is what the marker's group caught."""
        if self.codes and exit_code not in self.codes:
            return None
        match = re.search(self.marker, log, re.MULTILINE)
        if match is None:
            return None
        return Cause(
            self.code, self.sentence.format(*match.groups()), self.hint.format(service=service), self.permanent
        )


LOGS = "mlxq logs {service}"
REPAIR = "mlxq verify"
WEIGHTS = frozenset({"damaged", "weights_missing"})
"""Codes of causes that lie in the weights: the disk they are on may be away."""
SIGKILL, SIGABRT, SIGSEGV, SIGTERM = 137, 134, 139, 143

BAD_COMMAND_LINE = CauseRule(
    "bad_argument",
    "The engine refused its command line: {0}.",
    LOGS,
    permanent=True,
    marker=r"error: (.+?)\.?$",
    codes=(2,),
)
"""What argparse writes."""


def damaged_weights(marker: str) -> CauseRule:
    """Return the rule for what an engine writes of weights that it cannot read."""
    return CauseRule("damaged", "The weights are truncated or damaged.", REPAIR, permanent=True, marker=marker)


def missing_weights(marker: str) -> CauseRule:
    """Return the rule for what an engine writes where there are no weights."""
    return CauseRule("weights_missing", "The weights are not in their folder.", REPAIR, permanent=True, marker=marker)


def unknown_type(marker: str) -> CauseRule:
    """Return the rule for what an engine writes of a model's type; the marker catches it."""
    return CauseRule(
        "unsupported",
        "The engine does not know models of type {0}.",
        "mlxq models",
        permanent=True,
        marker=marker,
    )


UNKNOWN_TYPE = unknown_type(r"Model type (\S+) not supported")
"""What mlx-lm, and mlx-embeddings after it, write."""

FIRST = (
    CauseRule(
        OOM,
        "The GPU ran out of memory.",
        "mlxq config set memory-budget-pct 30",
        permanent=False,
        marker=r"ErrorOutOfMemory|Insufficient Memory|\[metal::malloc\]",
    ),
    CauseRule(
        OOM,
        "The machine ran out of memory.",
        "mlxq config set memory-budget-pct 30",
        permanent=False,
        marker=r"memory allocation of \d+ bytes failed|^MemoryError|std::bad_alloc",
    ),
    CauseRule(
        "open_files",
        "The limit of open files is too low for the engine, which needs 4,096.",
        "ulimit -n 8192 && mlxq down && mlxq up",
        permanent=True,
        marker=r"^ValueError: (?:not allowed to raise maximum limit|current limit exceeds maximum limit)",
    ),
    CauseRule(
        "metal_unreachable",
        "macOS's shader compiler could not be reached, as after a log-out.",
        LOGS,
        permanent=False,
        marker=r"MTLCompilerService",
    ),
    CauseRule(
        "disk_full",
        "The disk is full.",
        "df -h",
        permanent=False,
        marker=r"No space left on device",
    ),
    CauseRule(
        "foreign_address",
        "{0} is not an address of this machine.",
        "mlxq config reset gateway-host",
        permanent=True,
        marker=r"^([\d.]+):\d+: \[Errno (?:99|49)\]",
    ),
    CauseRule(
        "port_taken",
        "Another program is using its port.",
        "mlxq doctor",
        permanent=True,
        marker=r"\[Errno (?:98|48)\]|address already in use",
    ),
    CauseRule(
        "not_handed_over",
        "The running gateway did not hand over its port.",
        LOGS,
        permanent=False,
        marker=r"does not hand over its sockets",
    ),
)
"""What holds for every service, before what holds for one engine."""

LAST = (
    CauseRule(
        "not_installed",
        "The Python package {0} is missing.",
        "uv tool install --force mlxq",
        permanent=True,
        marker=r"^ModuleNotFoundError: No module named '([^']+)'",
    ),
    CauseRule(
        "not_installed",
        "The program could not be executed.",
        "uv tool install --force mlxq",
        permanent=True,
        codes=(126, 127),
    ),
    CauseRule("killed", "Killed by SIGKILL.", LOGS, permanent=False, codes=(SIGKILL,)),
    CauseRule("aborted", "Aborted (SIGABRT).", LOGS, permanent=False, codes=(SIGABRT,)),
    CauseRule("aborted", "Crashed (SIGSEGV).", LOGS, permanent=False, codes=(SIGSEGV,)),
    CauseRule("terminated", "Terminated by another program (SIGTERM).", LOGS, permanent=False, codes=(SIGTERM,)),
    CauseRule("ended", "Exited with code 0.", LOGS, permanent=False, codes=(0,)),
)
"""And after it; the first row that applies is the cause."""


def explain(
    exit_code: int | None, log: str, service: str, rules: Sequence[CauseRule] = (), *, memory_short: bool = False
) -> Cause:
    """Return the cause of an unexpected exit.

    `exit_code`: 128 + N after signal N, None when unknown. `log`: what the process wrote last. `rules`: what the
    service's own engine says at its end (tasks/engines).
    `memory_short`: whether the kernel killed for memory, or memory was critical, at that moment.
    """
    if memory_short and exit_code in {SIGKILL, None}:
        return Cause(
            OOM,
            "Killed by the system to free memory (out of memory).",
            "mlxq config set memory-budget-pct 30",
            permanent=False,
        )
    for rule in (*FIRST, *rules, *LAST):
        if cause := rule.cause(exit_code, log, service):
            return cause
    code, sentence = (
        ("unknown", "Exited; the cause is unknown.")
        if exit_code is None
        else ("failed", f"Exited with code {exit_code}.")
    )
    return Cause(code, sentence, LOGS.format(service=service), permanent=False)
