"""Report the worker's state to systemd, when systemd asked (sd_notify(3)); elsewhere nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket

READY = "READY=1"
ALIVE = "WATCHDOG=1"
STOPPING = "STOPPING=1"


def notify(word: str) -> bool:
    """Send one word to the socket that NOTIFY_SOCKET names; return whether it was sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(word.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
        return True
    return False
