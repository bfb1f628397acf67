"""One rank of a model that is split over several processes: mlx_lm.server 0.31.3, with what its flags cannot say.

Started by leader_program.py with MLX_RANK and MLX_HOSTFILE as `mlx.launch` sets them. Rank 0 serves HTTP on a socket in
a folder that only its user can enter; it has no key of its own. The rank ends when what started it is gone, however
that happened: its standard input ends then.
"""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pickle
import signal
import socketserver
import sys
import threading
import traceback
from functools import partial
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

STDIN, STDOUT, STDERR = range(3)
AWAKE = threading.Semaphore(0)
"""What an idle rank waits for: one that waits in MLX's ring instead reads its socket in a circle, and takes a core."""
PURGE = "purge"
"""Stands in the place of a request, so that all ranks drop their old prompts between the same two requests."""
SHARED = frozenset(
    {
        "CompletionRequest",
        "GenerationArguments",
        "LogitsProcessorArguments",
        "ModelDescription",
        "SamplingArguments",
    }
)
"""What one rank may send to another besides numbers, texts, lists and mappings: classes of mlx_lm.server."""


def main() -> None:
    """Serve as one rank until the leader is gone."""
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group, and are the leader's to obey
    threading.Thread(target=_end_with_leader, name="leader", daemon=True).start()
    threading.excepthook = lambda failure: _end_rank(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.excepthook = _end_rank
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.ERROR)
    chosen = _arguments()
    sign = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)  # whatever a library prints must not pass for the sign that rank 0 serves
    serve(chosen, sign)


def _end_with_leader() -> None:
    """Count what the leader passes on, a byte for each request that rank 0 has while all are idle, until it is gone."""
    while signs := os.read(STDIN, 4096):
        AWAKE.release(len(signs))
    os._exit(0)


def _end_rank(*failure: Any) -> None:
    """End the rank where any of its threads fails: its other threads must not hold it, and other ranks wait for it."""
    traceback.print_exception(*failure)
    sys.stderr.flush()
    os._exit(1)


def serve(chosen: argparse.Namespace, sign: int) -> None:
    """Load this rank's part of the model and take part in every answer. `sign`: where rank 0 says that it serves."""
    import mlx.core as mx
    from mlx_lm import server

    require_weights(Path(chosen.folder))
    server.pickle = SimpleNamespace(dumps=pickle.dumps, loads=loads)  # ranks exchange pickles
    cap_wired_limit(mx, chosen.memory_bytes)
    loaded = threading.Event()
    provider = provider_class(server)(server_arguments(chosen), loaded)
    generator = generator_class(server)(provider, chosen, sign)
    if mx.distributed.init().rank() != 0:
        generator.join()
        return
    loaded.wait()
    with http_server(chosen.socket, partial(handler(server), generator)) as http:
        os.write(sign, b"1")
        http.serve_forever()


def provider_class(server: Any) -> type[Any]:
    """Return the class that loads the model: mlx_lm's own, and it says when that is done."""

    class Provider(server.ModelProvider):
        def __init__(self, arguments: argparse.Namespace, loaded: threading.Event) -> None:
            self.loaded = loaded
            super().__init__(arguments)

        def load_default(self) -> None:
            super().load_default()
            self.loaded.set()

    return Provider


def generator_class(server: Any) -> type[Any]:
    """Return the class that answers: mlx_lm's own, which counts, and whose ranks can drop their prompts at once."""
    import mlx.core as mx
    from mlx_lm.models.cache import LRUPromptCache

    class Generator(server.ResponseGenerator):
        def __init__(self, provider: Any, chosen: argparse.Namespace, sign: int) -> None:
            self.work, self.chosen, self.sign = RankWork(), chosen, sign
            super().__init__(provider, LRUPromptCache(chosen.prompts, chosen.cache_bytes))

        def _next_request(self, timeout: float | None = None) -> Any:
            request = (
                super()._next_request()
                if timeout is None
                else self._share_request(awaited(self.requests, self.sign, self._rank))
            )
            if request is None or request[1] != PURGE:
                return request
            self.prompt_cache = LRUPromptCache(self.chosen.prompts, self.chosen.cache_bytes)
            mx.clear_cache()
            request[0].put(None)
            return None

        def purge(self) -> None:
            """Drop the old prompts of all ranks, after what runs."""
            dropped: Queue[None] = Queue()
            self.requests.put((dropped, PURGE, None))
            dropped.get()

        def generate(self, request: Any, generation_args: Any, progress_callback: Any = None) -> Any:
            def progress(read: int, whole: int) -> None:
                self.work.steps += 1
                if progress_callback:
                    progress_callback(read, whole)

            ctx, tokens = super().generate(request, generation_args, progress)
            self.work.begin(ctx)
            return ctx, self.work.counted(tokens)

    return Generator


def awaited(requests: Queue[Any], sign: int, rank: int) -> Any:
    """Wait without a limit, as nothing else is at work: rank 0 for a request, the others for its word."""
    if rank:
        AWAKE.acquire()
        return None
    request = requests.get()
    os.write(sign, b"1")
    return request


def require_weights(folder: Path) -> None:
    """Raise FileNotFoundError where weights are missing: mlx_lm loads a split model all the same, with random ones."""
    files = {file.name for file in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    needed = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else files
    if not files or needed - files:
        raise FileNotFoundError(f"No safetensors found for {sorted(needed - files) or 'any layer'} in {folder}")


class RankWork:
    """What rank 0 has done since its start."""

    def __init__(self) -> None:
        self.steps = self.requests = self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.reading = False

    def begin(self, ctx: Any) -> None:
        """Count a prompt that is about to be read."""
        self.reading = True
        self.prompt_tokens += len(ctx.prompt)
        self.cached_tokens += max(0, ctx.prompt_cache_count)

    def counted(self, tokens: Any) -> Any:
        """Yield the tokens of an answer, each counted."""
        try:
            for token in tokens:
                self.reading = False
                self.steps += 1
                self.completion_tokens += 1
                yield token
        finally:
            self.reading = False
            self.requests += 1


class _Narrow(pickle.Unpickler):
    """Reads what ranks exchange and nothing else: a pickle may name any function of Python."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "mlx_lm.server" and name in SHARED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not among what ranks exchange")


def loads(data: Any) -> Any:
    """Return the object in a pickle from another rank. Raises UnpicklingError for classes that are not in SHARED."""
    return _Narrow(io.BytesIO(bytes(data))).load()


def handler(server: Any) -> type[Any]:
    """Return the class that answers rank 0's HTTP: mlx_lm's own, without its log, with its counters and a purge."""

    class Handler(server.APIHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing: what users write must not be in a log."""

        def address_string(self) -> str:
            return "leader"

        def do_GET(self) -> None:  # noqa: N802 - as http.server names it
            if self.path != "/work":
                return super().do_GET()
            counts = vars(self.response_generator.work)
            return self._answer(counts | {"batchable": self.response_generator.model_provider.is_batchable})

        def do_DELETE(self) -> None:  # noqa: N802
            self.response_generator.purge()
            self._answer({"status": "cleared"})

        def _answer(self, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def http_server(path: str, answers: Any) -> Any:
    """Return rank 0's HTTP server, on a socket of the file system."""

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """Name the failure; its text may hold what a user wrote."""
            kind = sys.exc_info()[0]
            if kind is not None and not issubclass(kind, ConnectionError):
                logging.getLogger("mlx_lm").error("A request failed with %s.", kind.__name__)

    Path(path).unlink(missing_ok=True)
    return Server(path, answers)


def server_arguments(chosen: argparse.Namespace) -> argparse.Namespace:
    """Return mlx_lm.server's arguments."""
    return argparse.Namespace(
        model=chosen.folder,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=3,
        trust_remote_code=False,
        chat_template="",
        use_default_chat_template=False,
        chat_template_args={},
        temp=0.7,  # as vllm-mlx; its own 0.0 answers greedily
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=chosen.max_tokens,
        decode_concurrency=1,
        prompt_concurrency=1,
        prefill_step_size=chosen.prefill_step,
        prompt_cache_size=chosen.prompts,
        prompt_cache_bytes=chosen.cache_bytes,
        allowed_origins=[],
        pipeline=chosen.pipeline,
    )


def cap_wired_limit(mx: Any, memory_bytes: int) -> None:
    """Let this rank wire its part of the plan and no more."""
    if memory_bytes and mx.metal.is_available():
        mx.set_wired_limit(memory_bytes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--socket", default="", help="where rank 0 serves")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--prefill-step", type=int, required=True)
    parser.add_argument("--cache-bytes", type=int, required=True, help="for old prompts, of this rank")
    parser.add_argument("--memory-bytes", type=int, default=0, help="what this rank may wire")
    parser.add_argument("--prompts", type=int, default=64, help="how many old prompts are kept at most")
    parser.add_argument("--pipeline", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
