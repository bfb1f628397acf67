"""A release of rapid-mlx of 20 KB that installs and starts at once, and misbehaves as its wheel was made to.

What is installed, proven, compared, crashed and taken back in tests of that is not the real engine: no release of it
can be told to hang or to crash. uv, the index, the virtual environment and the processes are real.
"""

from __future__ import annotations

from pathlib import Path

from support import package_index

CLI = """
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOW = {how!r}
SPEED = {speed!r}
CRASH_AFTER = {crash_after!r}
CRASHES_EARLY = HOW == "fragile"
PORT = int(sys.argv[sys.argv.index("--port") + 1])
NAME = sys.argv[sys.argv.index("--served-model-name") + 1]
KEY = os.environ["RAPID_MLX_API_KEY"]
LOOKUP = "--speculative-config" in sys.argv
WORD = "b" if "int4" in sys.argv else "a"
PACE = SPEED * (5 if LOOKUP else 0.8 if "int8" in sys.argv else 1)
asked = []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body, status=200):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.path == "/health":
            return self.answer({{"status": "healthy"}})
        if self.headers.get("Authorization") != f"Bearer {{KEY}}":
            return self.answer({{}}, 401)
        if self.path == "/v1/models":
            return self.answer({{"data": [{{"id": NAME}}]}})
        return self.answer({{"status": "running", "steps_executed": len(asked), "num_running": 0, "num_waiting": 0}})

    def do_POST(self):
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if HOW == "mute":
            time.sleep(3600)
        asked.append(1)
        prompt = sum(len(message["content"].split()) for message in wanted.get("messages", []))
        if CRASH_AFTER and len(asked) > CRASH_AFTER and (CRASHES_EARLY or not NAME.startswith("engine")):
            print("Fatal Python error: Segmentation fault", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        cached = 0 if HOW == "forgetful" else max(0, prompt - 8)
        tokens = wanted.get("max_tokens", 4)
        usage = {{"prompt_tokens": prompt, "completion_tokens": tokens,
                 "prompt_tokens_details": {{"cached_tokens": cached}}}}
        if wanted.get("stream"):
            return self.stream(tokens, usage)
        choice = {{"index": 0, "message": {{"role": "assistant", "content": "a"}}, "finish_reason": "length"}}
        known = {{"id": "1", "object": "chat.completion", "model": NAME}}
        return self.answer(known | {{"choices": [choice], "usage": usage}})

    def stream(self, tokens, usage):
        self.send_response(200)
        self.end_headers()
        time.sleep(0.1)
        for _ in range(tokens):
            time.sleep(1 / PACE)
            self.line({{"choices": [{{"delta": {{"content": WORD}}}}]}})
        self.line({{"choices": [], "usage": usage}})
        self.wfile.write(b"data: [DONE]\\n\\n")

    def line(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
        self.wfile.flush()


def main():
    if HOW == "dead":
        sys.exit("  Error: this release does not start.")
    if HOW == "hang":
        time.sleep(3600)
    if HOW == "brittle" and LOOKUP and NAME != "bench":
        sys.exit("  Error: prompt lookup is not supported.")
    if HOW == "picky" and not NAME.startswith("engine"):
        sys.exit("  Cause: config.json requests unsupported model_type 'llama'.")
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""
FILES = {
    "rapid_mlx/__init__.py": "",
    "rapid_mlx/_uvicorn.py": "",
    "uvicorn/__init__.py": "",
    "mlx/__init__.py": "",
    "mlx/core.py": "class metal:\n    is_available = staticmethod(lambda: False)\n",
}


def make(
    folder: Path, version: str, how: str = "good", *, speed: float = 100.0, crash_after: int = 0, padding: int = 0
) -> Path:
    """Write the wheel of one release and return it.

    `how`: good, dead (does not start), hang (does not listen), mute (does not answer), forgetful (reuses no prompt),
    picky (loads the smoke test's model alone), fragile (crashes in the smoke test, too) or brittle (does not start with
    prompt lookup but for a benchmark); `speed`: tokens/s, five times as many with prompt lookup, and fewer with a cache
    of int8; with one of int4 its answers are others; `crash_after`: requests it answers; `padding`: bytes that the
    wheel is larger.
    """
    program = CLI.format(how=how, speed=speed, crash_after=crash_after)
    more = {"rapid_mlx/cli.py": program, "rapid_mlx/padding.bin": bytes(padding)}
    return package_index.wheel(folder, "rapid-mlx", version, FILES | more)


def lock(engines: Path, *wheels: Path) -> None:
    """Write a lock for each of the wheels where a user's own locks are."""
    (engines / "locks").mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        version = wheel.name.split("-")[1]
        (engines / "locks" / f"rapid-mlx-{version}.txt").write_text(package_index.locked(wheel))
