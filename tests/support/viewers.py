"""Viewers of the page that only take what comes: `viewers.py PORT COOKIE`, then how many on each line of stdin.

Cheaper than browsers, so that what is measured beside them is the page. Each number is answered by a line when so many
look on; the end of stdin ends it.
"""

from __future__ import annotations

import selectors
import socket
import sys


def connect(port: int, cookie: str) -> socket.socket:
    viewer = socket.create_connection(("127.0.0.1", port))
    asked = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\r\n"
    viewer.sendall(asked.encode())
    if not viewer.recv(65_536).startswith(b"HTTP/1.1 200"):
        sys.exit("the page did not let a viewer in")
    return viewer


def main() -> None:
    port, cookie = int(sys.argv[1]), sys.argv[2]
    told = selectors.DefaultSelector()
    told.register(sys.stdin, selectors.EVENT_READ)
    viewers: list[socket.socket] = []
    while True:
        for key, _ in told.select():
            if isinstance(key.fileobj, socket.socket):
                if not key.fileobj.recv(1 << 20):
                    sys.exit("the page hung up")
                continue
            wanted = sys.stdin.readline()
            if not wanted:
                return
            for viewer in viewers:
                told.unregister(viewer)
                viewer.close()
            viewers = [connect(port, cookie) for _ in range(int(wanted))]
            for viewer in viewers:
                told.register(viewer, selectors.EVENT_READ)
            print("there", flush=True)
            break


if __name__ == "__main__":
    main()
