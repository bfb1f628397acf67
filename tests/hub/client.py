"""Start the small Hub of server.py, and make models for it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.server import COMMIT

SERVER = Path(__file__).with_name("server.py")


@dataclass(frozen=True)
class Hub:
    """One running Hub."""

    root: Path
    endpoint: str

    def set(self, **settings: Any) -> None:
        """Change its settings and forget what it heard."""
        self._control(json.dumps(settings).encode())

    def heard(self, *kinds: str) -> list[dict[str, Any]]:
        """Give the requests it got: `api`, `resolve` or `cdn`."""
        return [line for line in self._control(None) if not kinds or line["what"] in kinds]

    def _control(self, body: bytes | None) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.endpoint}/_control", body, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def running(root: Path) -> Generator[Hub]:
    """Serve the folders of `root` until the end of the block, at a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as door:  # who asks before the server is up waits in its queue
        number = door.fileno()
        process = subprocess.Popen([sys.executable, "-P", str(SERVER), str(root), str(number)], pass_fds=[number])
        port = door.getsockname()[1]
    try:
        yield Hub(root, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


__all__ = ["COMMIT", "Hub", "running"]
