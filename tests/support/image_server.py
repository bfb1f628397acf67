"""A server of images at a public address, in a network of its own, and the program that fetches, asked for each path.

`python image_server.py PROGRAM PATH…` in a folder with red.png, cert.pem and key.pem; prints a line a path.
"""

from __future__ import annotations

import http.server
import ssl
import subprocess
import sys
import threading
from pathlib import Path

ADDRESS = "9.9.9.9"
MIB = 1 << 20
IMAGE = Path("red.png").read_bytes()
MOVED = {
    "/moved": "/red.png",
    "/inside": "https://127.0.0.1/a.png",
    "/plain": f"http://{ADDRESS}/red.png",
    "/loop": "/loop",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a GET as its path says."""

    def do_GET(self) -> None:
        if self.path in MOVED:
            self.send_response(302)
            self.send_header("location", MOVED[self.path])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/nowhere" else 200)
        self.send_header("content-type", "text/html" if self.path == "/page" else "image/png")
        self.end_headers()
        try:
            for part in [bytes(MIB)] * 22 if self.path == "/endless" else [IMAGE]:
                self.wfile.write(part)
        except OSError:
            return

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - says nothing
        """Say nothing."""


def main() -> None:
    """Serve, and fetch each path."""
    server = http.server.ThreadingHTTPServer((ADDRESS, 443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("cert.pem", "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for path in sys.argv[2:]:
        argv, url = [sys.executable, "-I", sys.argv[1]], f"https://{ADDRESS}{path}\n"
        done = subprocess.run(argv, input=url.encode(), capture_output=True, check=False)
        print(path, done.returncode, done.stdout == b"image/png\n" + IMAGE, done.stderr.decode().strip())


if __name__ == "__main__":
    main()
