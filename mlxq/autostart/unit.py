"""The worker that the system keeps running: its command, its environment, the user it runs as.

Nothing here is a secret; the worker reads its keys from its home.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from state.classes import dataclass
from state.errors import not_set_up
from state.paths import Home, get_home
from tasks.upgrade import installation

STOP_S = 20
"""Seconds that launchd and systemd give the worker to stop; above the worker's own 12 s."""
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_PROXY", "SSL_CERT_FILE")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
INDEX_VARIABLES = (
    *("PIP_INDEX_URL", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"),
    *("UV_FIND_LINKS", "UV_CACHE_DIR"),
)
"""Where the worker gets engines, the built-in model and another version of mlxq from."""


@dataclass(frozen=True)
class Unit:
    """A worker that the system keeps running."""

    program: Sequence[str]
    """Absolute path of the installed command and its arguments."""
    home: Home
    environment: Mapping[str, str]
    system: bool = False
    """Run at boot (a launch daemon, a system unit) instead of with the user's session."""
    user: str = ""
    """Who it runs as when `system`."""
    user_id: int = -1
    user_home: Path = Path()
    """The home folder of that user, not mlxq's."""


@dataclass(frozen=True)
class AutostartStatus:
    """What is installed, and what the system says about it."""

    path: str
    installed: bool
    running: bool
    """The system says that a worker of it runs now."""
    domain: str = ""
    """launchd's domain of the loaded job, as gui/501; systemd's scope, user or system."""
    state: str = ""
    """The system's own word, as "running", "spawn scheduled", "activating"; empty when it is not loaded."""
    pid: int | None = None
    runs: int | None = None
    """How often it was started since it was loaded."""
    last_exit: str = ""
    """The last exit in the system's own words; empty when it never exited."""
    message: str = ""
    """What the state means, in a sentence for a person; empty when all is well."""


def environment(base: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return the variables the worker needs of the user's shell; a proxy or index that holds a password is left out."""
    variables = {name: base[name] for name in KEPT_VARIABLES if base.get(name)}
    addresses = (*PROXY_VARIABLES, *INDEX_VARIABLES)
    variables |= {name: base[name] for name in addresses if base.get(name) and "@" not in base[name]}
    return variables | {"MLXQ_HOME": str(home.root)}


def program() -> list[str]:
    """Return the absolute command line of this installation's worker, which becomes the version that is used.

    With --wait it waits for a worker that runs already instead of failing, which launchd would repeat for ever.
    """
    installed = installation.program(get_home())
    command = [str(installed)] if installed.exists() else [sys.executable, "-P", "-m", "mlxq"]
    return [*command, "worker", "--wait"]


def describe(*, system: bool) -> Unit:
    """Return the unit for this user and this installation. Raises NotSetUp for a system one without a home.

    Under sudo the user is the one who called it, not root: the worker, its home and its files stay theirs.
    """
    import pwd

    caller = os.environ.get("SUDO_USER") if system else None
    entry = pwd.getpwnam(caller) if caller else pwd.getpwuid(os.getuid())
    user_home = Path(entry.pw_dir if system else Path.home())
    base = {**os.environ, "HOME": str(user_home), "USER": entry.pw_name} if system else dict(os.environ)
    home = Home(Path(base.get("MLXQ_HOME") or user_home / ".mlxq").absolute()) if system else get_home()
    if system and not home.root.is_dir():
        raise not_set_up(home.root, "mlxq setup   (without sudo)")
    return Unit(
        program(), home, environment(base, home), system, entry.pw_name if system else "", entry.pw_uid, user_home
    )
