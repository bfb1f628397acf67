"""Another program at a port that mlxq has chosen: what it was sent."""

from __future__ import annotations

import socket


def heard(listener: socket.socket) -> list[bytes]:
    """Return what each program that has connected by now sent."""
    listener.setblocking(False)
    words: list[bytes] = []
    while True:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return words
        with peer:
            words.append(peer.recv(4096))
