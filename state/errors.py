"""Every error that a user can meet, in one family.

    MlxqError                 1   something failed
    ├── UsageProblem          2   the command or a value makes no sense
    ├── NotSetUp              3   there is no stack yet
    ├── NotRunning            3   the thing asked for is not running
    ├── DoesNotFit            4   memory or disk is too small
    ├── TimedOut              5   the wait ended, the job continues
    ├── NotFound              1   no such model, job, service
    ├── Busy                  1   another process is doing it           (retried)
    ├── Offline               1   a host did not answer                (retried)
    ├── Gated                 1   a licence must be accepted first
    ├── InvitationRefused     1   an invitation to a fleet is not valid
    ├── Damaged               1   a file is not what it should be
    ├── DiskUnavailable       1   the folder for weights is away, hangs or is read-only
    ├── PortTaken             1   another program listens on our port
    ├── EngineFailed          1   vllm-mlx would not start or answer   (retried)
    │   └── EngineUnproven    1   a fresh version of an engine failed its smoke test
    ├── GatewayFailed         1   LiteLLM would not start or answer    (retried)
    ├── UpgradeFailed         1   a version of mlxq did not serve, and was not taken into use or taken back
    ├── WorkerLost            1   the worker died too often at this job
    ├── DeadlinePassed        1   the job ran over its time limit
    ├── Upstream              1   a job this one needs did not succeed
    ├── NewerState            1   state.db was written by a newer mlxq
    ├── StateDamaged          1   state.db cannot be read
    ├── StateUnavailable      1   state.db cannot be used just now      (retried)
    │   ├── OtherSchema       1   another version of mlxq takes over    (retried)
    │   └── DiskFull          4   no room left to write to state.db     (retried)
    └── Internal              1   a fault in mlxq itself

The message says what failed, with the numbers; `done` what mlxq already did about it; `hint` the one command to
run next. A job's row keeps `code`, message and hint, and `rebuild` makes the same error again from them,
so a failure in the worker and a failure in the command line exit alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class MlxqError(Exception):
    """Something failed."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, hint: str | None = None, done: str | None = None) -> None:
        """Take the sentence for the user, the next command, and what mlxq did already."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.hint = hint
        self.done = done
        super().__init__(self.message)


class UsageProblem(MlxqError):
    """The command or a value makes no sense."""

    code = "usage"
    exit_code = 2


class NotSetUp(MlxqError):
    """There is no stack yet."""

    code = "not_set_up"
    exit_code = 3


def not_set_up(root: Path, hint: str = "mlxq setup") -> NotSetUp:
    """Return the error for the home in the folder `root`, which has no stack."""
    return NotSetUp(f"mlxq is not set up in {root}.", hint=hint)


class NotRunning(MlxqError):
    """It is not running."""

    code = "not_running"
    exit_code = 3


class DoesNotFit(MlxqError):
    """Memory or disk is too small."""

    code = "does_not_fit"
    exit_code = 4


class TimedOut(MlxqError):
    """The wait ended; the job continues."""

    code = "timed_out"
    exit_code = 5


class NotFound(MlxqError):
    """There is no such thing."""

    code = "not_found"


class Busy(MlxqError):
    """Another process is doing it already."""

    code = "busy"
    retry = True


class Offline(MlxqError):
    """A host did not answer."""

    code = "offline"
    retry = True


class Gated(MlxqError):
    """A licence must be accepted first."""

    code = "gated"


class InvitationRefused(MlxqError):
    """An invitation to a fleet is not valid."""

    code = "invitation_refused"


class Damaged(MlxqError):
    """A file is not what it should be."""

    code = "damaged"


class DiskUnavailable(MlxqError):
    """The folder for weights cannot be used."""

    code = "disk_unavailable"


class PortTaken(MlxqError):
    """Another program listens on the port."""

    code = "port_taken"


class EngineFailed(MlxqError):
    """The engine would not start or answer."""

    code = "engine_failed"
    retry = True


class EngineUnproven(EngineFailed):
    """A version of an engine failed its smoke test."""

    code = "engine_unproven"
    retry = False


class GatewayFailed(MlxqError):
    """The gateway would not start or answer."""

    code = "gateway_failed"
    retry = True


class UpgradeFailed(MlxqError):
    """Another version of mlxq did not serve."""

    code = "upgrade_failed"


class WorkerLost(MlxqError):
    """The worker died too often while it ran this job."""

    code = "worker_lost"


class DeadlinePassed(MlxqError):
    """The job ran over its time limit."""

    code = "deadline"


class Upstream(MlxqError):
    """A job this one needs did not succeed."""

    code = "upstream"


class NewerState(MlxqError):
    """state.db was written by a newer mlxq."""

    code = "newer_state"


class StateDamaged(MlxqError):
    """state.db cannot be read."""

    code = "state_damaged"


class StateUnavailable(MlxqError):
    """state.db cannot be used just now."""

    code = "state_unavailable"
    retry = True


class OtherSchema(StateUnavailable):
    """state.db has the schema of another version of mlxq, which takes this process's place within seconds."""

    code = "other_schema"


class DiskFull(StateUnavailable):
    """The disk is full."""

    code = "disk_full"
    exit_code = 4


class Internal(MlxqError):
    """A fault in mlxq itself."""

    code = "internal"


def _family(kind: type[MlxqError]) -> dict[str, type[MlxqError]]:
    """Map every code below `kind` to its class."""
    classes = {kind.code: kind}
    for child in kind.__subclasses__():
        classes |= _family(child)
    return classes


def rebuild(code: str, message: str, hint: str | None = None, done: str | None = None) -> MlxqError:
    """Make the error again that a job's row describes; an unknown code becomes a plain MlxqError."""
    return _family(MlxqError).get(code, MlxqError)(message, hint=hint, done=done)
