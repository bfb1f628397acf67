"""Ports for tests; two runs at once must not meet at a fixed one."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Give a port that nobody has now. What can be handed a bound socket instead is safer with that."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
