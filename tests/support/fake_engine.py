"""A small engine that misbehaves on demand: `fake_engine.py --port N [--load S] [--ignore-term] …`.

It speaks the part of vllm-mlx that supervision reads. For what the real engine cannot be made to do.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="fast")
    parser.add_argument("--load", type=float, default=0.0, help="seconds before the port opens")
    parser.add_argument("--weights", type=Path, help="folder; ends as the original does when they are cut short")
    parser.add_argument("--cache", type=int, help="bytes; only told, so that a smaller cache is another command line")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--exit-after", type=float, help="seconds until it ends by itself")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--say", default="", help="last words on stderr before --exit-after")
    parser.add_argument("--wedge", action="store_true", help="takes requests, never makes a token")
    parser.add_argument("--broken", action="store_true", help="green health, 500 for every completion")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds before any answer")
    return parser.parse_args()


class Engine(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, wanted: argparse.Namespace) -> None:
        self.wanted = wanted
        self.steps = 0
        self.running = 0
        self.key = os.environ.get("MLXQ_TIER_KEY", "")
        super().__init__(("127.0.0.1", wanted.port), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        time.sleep(self.server.wanted.slow)
        if self.path == "/health":
            return self.answer({"status": "healthy", "model_loaded": True})
        if self.headers.get("Authorization", "") != f"Bearer {self.server.key}":
            return self.answer({"detail": "API key required"}, 401)
        if self.path == "/v1/models":
            return self.answer({"object": "list", "data": [{"id": self.server.wanted.name}]})
        return self.answer(
            {
                "status": "running",
                "steps_executed": self.server.steps,
                "num_running": self.server.running,
                "num_waiting": 0,
                "metal": {"active_memory_gb": None},
                "requests": [],
            }
        )

    def do_DELETE(self) -> None:
        print("purged", file=sys.stderr, flush=True)
        self.answer({"status": "cleared"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.wanted.slow)
        if self.server.wanted.broken:
            return self.answer({"detail": "Internal Server Error"}, 500)
        self.server.running += 1
        if self.server.wanted.wedge:
            threading.Event().wait()
        self.server.steps += 1
        self.server.running -= 1
        word = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "length"}
        used = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        known = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.server.wanted.name}
        if asked.get("stream"):
            chunk = {**word, "delta": word["message"]}
            return self.stream([{"choices": [chunk]}, {"choices": [], "usage": used}], known)
        return self.answer(known | {"choices": [word], "usage": used})

    def stream(self, events: list[dict[str, Any]], known: dict[str, Any]) -> None:
        told = [json.dumps(known | event | {"object": "chat.completion.chunk"}) for event in events]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write("".join(f"data: {text}\n\n" for text in [*told, "[DONE]"]).encode())


def main() -> None:
    wanted = options()
    if wanted.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: setattr(wanted, "wedge", True))  # as --wedge, from now on
    time.sleep(wanted.load)
    if wanted.weights and cut_short(wanted.weights / "model.safetensors"):
        print("RuntimeError: [load_safetensors] Invalid json metadata", file=sys.stderr, flush=True)
        os._exit(3)
    if wanted.exit_after is not None:
        threading.Timer(wanted.exit_after, end, [wanted]).start()
    Engine(wanted).serve_forever()


def cut_short(file: Path) -> bool:
    """Tell whether a file of weights ends before its own header says: 8 bytes of length, JSON, the numbers."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + length:
        return True
    header = json.loads(raw[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return len(raw) < 8 + length + max(ends)


def end(wanted: argparse.Namespace) -> None:
    print(wanted.say, file=sys.stderr, flush=True)
    os._exit(wanted.exit_code)


if __name__ == "__main__":
    main()
