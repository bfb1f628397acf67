"""Hold off the machine's idle sleep, as long as it is asked to."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class SleepInhibitor:
    """Runs a helper while the machine must stay awake; none where there is no such helper."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        self._argv = argv
        self._helper: subprocess.Popen[bytes] | None = None

    def hold(self, needed: bool) -> None:
        """Make sure the helper runs if and only if it is needed; meant to be called at every look."""
        running = self._helper is not None and self._helper.poll() is None
        if needed and not running and self._argv:
            self._helper = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL)
        elif not needed and running and self._helper:
            self._helper.terminate()
            self._helper.wait()
