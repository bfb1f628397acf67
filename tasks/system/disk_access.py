"""Why a file cannot be used, where macOS refuses it although its permissions would allow it.

macOS keeps removable and network disks and some folders of a user from programs without consent, and asks for none on
behalf of a program in the background. Such an access fails with EPERM; missing permissions fail with EACCES (Apple
Developer Forums 678819, "On File System Permissions").
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

DISKS = Path("/Volumes")
FOLDERS = ("Desktop", "Documents", "Downloads", "Library/Mobile Documents")
"""Protected folders of a user, the last one iCloud Drive's."""
SETTINGS = 'open "x-apple.systempreferences:com.apple.preference.security?Privacy_AllFiles"'


def reason(problem: OSError, path: Path) -> str:
    """Return why the access to a path failed, as the end of a sentence."""
    if not is_refused(problem, path, sys.platform, Path.home()):
        return problem.strerror or str(problem)
    return (
        f"macOS refuses it to programs without Full Disk Access; allow {os.path.realpath(sys.executable)} under System "
        "Settings → Privacy & Security → Full Disk Access"
    )


def hint(problem: OSError, path: Path) -> str:
    """Return the command to run next."""
    return SETTINGS if is_refused(problem, path, sys.platform, Path.home()) else f"ls -ld {path}"


def is_refused(problem: OSError, path: Path, platform: str, home: Path) -> bool:
    """Return whether an access to a path failed for want of Full Disk Access, for a user with that home folder."""
    if platform != "darwin" or problem.errno != errno.EPERM:
        return False
    resolved, protected = Path(os.path.realpath(path)), (DISKS, *(home / name for name in FOLDERS))
    return any(named.is_relative_to(folder) for named in (path, resolved) for folder in protected)
