"""Whether the end of an engine's process is the engine's own fault, and what helps then. Pure.

A version that was taken into use lately is on trial: what goes wrong under it is blamed on it, and the version before
it serves again. Later the model is suspected with it: that one model gets another engine, and the others keep theirs.
"""

from __future__ import annotations

from enum import StrEnum

from tasks.plan.exit_causes import OOM

TRIAL_S = 7 * 86400.0
EXCUSED = frozenset({OOM, "disk_full", "reboot", "killed", "terminated", "port_taken"})
"""Causes that are the machine's or the user's."""
BY_RELEASE = frozenset({"bad_argument"})
"""Lasting causes that another version may not have: its flags are others."""
BY_MODEL = frozenset({"unsupported"})
"""Lasting causes that another engine may not have; the version's fault where the one before it served the model."""
GONE = "not_installed"
"""Something is missing from the engine's environment."""


class Remedy(StrEnum):
    """What helps."""

    NONE = "none"
    TAKE_BACK = "take_back"  # the version of the engine that was used before
    OTHER_ENGINE = "other_engine"  # another engine for this model
    REINSTALL = "reinstall"  # the same version once more, and another one meanwhile


def remedy(
    code: str, *, permanent: bool, crash_loop: bool, own: bool, trial: bool, alternative: bool, served: bool
) -> Remedy:
    """Return what helps against an end whose cause has this code.

    `permanent`: another start would end the same way; `crash_loop`: starts have ended too often; `own`: the engine has
    an environment of its own; `trial`: its version was taken into use within TRIAL_S; `alternative`: another engine is
    here that is not known to fail with this model; `served`: the version before this one served the model.
    """
    if code == GONE:
        return Remedy.REINSTALL if own else Remedy.NONE
    lasting = code in BY_RELEASE | BY_MODEL if permanent else crash_loop
    if not lasting or code in EXCUSED:
        return Remedy.NONE
    if own and trial and (served or code not in BY_MODEL):
        return Remedy.TAKE_BACK
    return Remedy.OTHER_ENGINE if alternative else Remedy.NONE
