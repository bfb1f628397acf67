"""A small server that answers for an engine: requests are under way in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support import scene

PORTS = {name: port for name, _, port, *_ in scene.TIERS}
REQUESTS: dict[str, list[tuple[str, int, int, float, float]]] = {
    "standard": [("generation", 8_412, 310, 28.4, 21.6), ("generation", 1_206, 96, 27.9, 4.1)],
    "fast": [("generation", 640, 212, 116.2, 2.0)],
    "longctx": [],
}


@contextmanager
def engine(name: str, busy: threading.Event | None = None) -> Generator[int]:
    """Answer `/v1/status` as an engine with work does, while `busy` is set where it is given; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = json.dumps(_status(name if busy is None or busy.is_set() else "")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", PORTS[name]), Handler)
    except OSError:  # somebody else has the port that people know
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def _status(name: str) -> dict[str, Any]:
    requests = [
        {
            "request_id": f"{name}-{number}", "status": "running", "phase": phase, "prompt_tokens": prompt,
            "completion_tokens": answer, "max_tokens": 512, "tokens_per_second": speed, "elapsed_s": elapsed,
            "ttft_s": 0.6, "cached_tokens": 0,
        }
        for number, (phase, prompt, answer, speed, elapsed) in enumerate(REQUESTS.get(name, []))
    ]  # fmt: skip
    return {"status": "running", "num_running": len(requests), "num_waiting": 0, "requests": requests}
