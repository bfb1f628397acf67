"""Disks of macOS: what is free now, what macOS would free by a purge, and what Time Machine leaves out.

statvfs of Python before 3.13 overflows at 4 TiB (cpython issue 87804), so both figures come from Foundation's
resource values (CFURL.h), as Finder's do.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

assert sys.platform == "darwin"

CORE_FOUNDATION = "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation"
NUMBER_SINT64 = 4
"""kCFNumberSInt64Type (CFNumber.h)."""


def plain_free(folder: Path) -> int:
    """Return the bytes that are free now. Raises OSError."""
    capacity = _capacity(folder, "kCFURLVolumeAvailableCapacityKey")
    return shutil.disk_usage(folder).free if capacity is None else capacity


def free_for_important(folder: Path) -> int | None:
    """Return the bytes that macOS would make free for what a user asked for; None where the disk does not say."""
    return _capacity(folder, "kCFURLVolumeAvailableCapacityForImportantUsageKey")


def exclude_from_backup(path: Path) -> bool:
    """Have Time Machine leave out a file or a folder; return whether the disk took the note.

    It is an extended attribute (com_apple_backup_excludeItem) that moves along and that `tmutil removeexclusion`
    removes; cargo leaves out its build folders by the same property.
    """
    library = _core_foundation()
    name = os.fsencode(path)
    url = library.CFURLCreateFromFileSystemRepresentation(None, name, len(name), path.is_dir())
    if not url:
        return False
    try:
        excluded, true = _key(library, "kCFURLIsExcludedFromBackupKey"), _key(library, "kCFBooleanTrue")
        return bool(library.CFURLSetResourcePropertyForKey(ctypes.c_void_p(url), excluded, true, None))
    finally:
        library.CFRelease(ctypes.c_void_p(url))


def _capacity(folder: Path, key: str) -> int | None:
    library = _core_foundation()
    path = os.fsencode(folder)
    url = library.CFURLCreateFromFileSystemRepresentation(None, path, len(path), True)
    if not url:
        return None
    number = ctypes.c_void_p()
    try:
        name = _key(library, key)
        if not library.CFURLCopyResourcePropertyForKey(ctypes.c_void_p(url), name, ctypes.byref(number), None):
            return None
        return _value(library, number)
    finally:
        library.CFRelease(ctypes.c_void_p(url))


def _key(library: Any, name: str) -> ctypes.c_void_p:
    """Return one of the library's constants."""
    return ctypes.c_void_p.in_dll(library, name)


def _value(library: Any, number: ctypes.c_void_p) -> int | None:
    """Return a CFNumber's value, and release it."""
    if not number:
        return None
    value = ctypes.c_int64()
    read = library.CFNumberGetValue(number, NUMBER_SINT64, ctypes.byref(value))
    library.CFRelease(number)
    return value.value if read else None


@functools.cache
def _core_foundation() -> Any:
    library = ctypes.CDLL(CORE_FOUNDATION)
    library.CFURLCreateFromFileSystemRepresentation.restype = ctypes.c_void_p
    library.CFURLCreateFromFileSystemRepresentation.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_long,
        ctypes.c_bool,
    ]
    return library
