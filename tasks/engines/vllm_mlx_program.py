"""The program of an engine process: vllm-mlx 0.6.0, with what its flags cannot say.

Run by the Python of the environment that the engine is in, which may have no mlxq: `PYTHON -P vllm_mlx_program.py serve
FOLDER --port … `. It imports nothing of mlxq but files by their path. The key comes by MLXQ_TIER_KEY.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn

TASKS = Path(__file__).parents[1]

DRAIN_S = 4
"""Seconds a running answer has left after SIGTERM; the engine alone waits without limit. Its own end takes up to
three more on a busy machine, and mlxq kills at 10."""


def main() -> None:
    """Serve one model until SIGTERM; what it saves, prompts among it, only its user can read."""
    os.umask(0o077)
    keep_out("torch", "torchvision")
    log_briefly()
    load(TASKS / "system" / "own_log.py").keep_of_service()
    key = os.environ.pop("MLXQ_TIER_KEY", "")
    settle_the_server(key)
    sys.argv += key_arguments(key)
    memory_bytes = int(os.environ.get("MLXQ_MEMORY_BYTES", "0"))
    sys.argv += memory_arguments(memory_bytes)
    cap_wired_limit(importlib.import_module("mlx.core"), memory_bytes)
    move_prefix_cache(os.environ.get("MLXQ_PREFIX_CACHE"))
    if cache := os.environ.get("MLXQ_PREFIX_CACHE"):
        load(TASKS / "gateway" / "images" / "scaling.py").keep_files_in(Path(cache, "images"))
    let_waiting_requests_go()
    from vllm_mlx.cli import main as serve

    serve()


def load(file: Path) -> Any:
    """Return the module in `file`, which imports nothing of mlxq."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keep_out(*modules: str) -> None:
    """Make imports of `modules` fail: transformers takes torch when it is there, for 750 MB and 10 s."""
    for module in modules:
        sys.modules[module] = None  # pyright: ignore[reportArgumentType] - None is how an import is refused


def log_briefly() -> None:
    """Date every line, and drop the engine's INFO: it holds what users wrote, ten lines a request."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for name in ("vllm_mlx", "httpx", "mlx_vlm"):
        logging.getLogger(name).setLevel(logging.WARNING)


def settle_the_server(key: str) -> None:
    """Set uvicorn a limit for answers still running at SIGTERM, none at SIGUSR2, no log, and a lock on every path."""
    import uvicorn

    asgi = load(TASKS / "engines" / "asgi.py")
    scaled, image_limits = (
        load(TASKS / "gateway" / "images" / "scaling.py").Scaled,
        load(TASKS.parent / "catalog" / "images.py"),
    )

    def run(app: Any, **wanted: Any) -> None:
        settled = uvicorn.Config(
            asgi.locked(scaled(asgi.cancelled_on_disconnect(app), image_limits), key),
            **wanted,
            timeout_graceful_shutdown=DRAIN_S,
            log_config=None,
            access_log=False,
        )
        server = uvicorn.Server(settled)
        signal.signal(signal.SIGUSR2, lambda _number, _frame: drain(server))
        server.run()
        if not server.started:
            sys.exit(1)

    uvicorn.run = run


def drain(server: uvicorn.Server) -> None:
    """Take no more requests, and end with code 0 after the last answer, however long that takes."""
    server.config.timeout_graceful_shutdown = None
    server.should_exit = True


def key_arguments(key: str) -> list[str]:
    """Hand over the key inside the process: the command line that others can read stays without it."""
    return ["--api-key", key] if key else []


def cap_wired_limit(mx: Any, memory_bytes: int) -> None:
    """Let this process wire no more than its part of the plan; `mx` is mlx.core.

    Every engine asks macOS to wire Metal's whole working set, and several together would wire more than there is. MLX
    has no setting for it: its own function is called, with the smaller of the two numbers.
    """
    if not memory_bytes or not mx.metal.is_available():
        return
    wire = mx.set_wired_limit

    def capped(limit: int) -> int:
        return wire(min(limit, memory_bytes))

    mx.set_wired_limit = capped


def memory_arguments(memory_bytes: int) -> list[str]:
    """Turn the tier's bytes into the share of Metal's working set that the engine's flag takes.

    Other back ends have no such limit in vllm-mlx 0.6.0.
    """
    import mlx.core as mx

    whole = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    if not whole or not memory_bytes:
        return []
    return ["--gpu-memory-utilization", f"{min(0.95, max(0.02, memory_bytes / int(whole))):.3f}"]


def may_save(unstored: Path) -> bool:
    """Return whether prompts may be written to disk. `unstored`: the file by which the gateway says that none may."""
    return not unstored.exists() and os.environ.get("MLXQ_KEEPS_PROMPTS") != "0"


def move_prefix_cache(folder: str | None) -> None:
    """Keep the prompts that the engine saves at its end under mlxq's home, where they can be purged; or not at all."""
    from vllm_mlx import server

    if not folder:
        return
    original, save = server._get_cache_dir, server._save_prefix_cache_to_disk  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - there is no flag
    unstored = Path(folder, "no-store")
    unstored.unlink(missing_ok=True)

    async def save_unless_told(*engine: Any) -> None:
        if may_save(unstored):
            await save(*engine)

    server._get_cache_dir = lambda: str(Path(folder) / Path(original()).name)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    server._save_prefix_cache_to_disk = save_unless_told  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def let_waiting_requests_go() -> None:
    """Take a request whose client left while it waited out of the queue; else it is answered all the same.

    The engine forgets the request at once, and the abort, which runs before the next step, then does not find it in
    the queue any more. So the abort is what forgets it.
    """
    from vllm_mlx.scheduler import Scheduler

    forget, abort = Scheduler.remove_finished_request, Scheduler._do_abort_request  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - there is no flag

    def remove(self: Scheduler, request_id: str) -> Any:
        pending = self._pending_abort_ids  # pyright: ignore[reportPrivateUsage]
        return None if request_id in pending else forget(self, request_id)

    def abort_and_forget(self: Scheduler, request_id: str) -> bool:
        aborted = abort(self, request_id)
        forget(self, request_id)
        return aborted

    Scheduler.remove_finished_request = remove
    Scheduler._do_abort_request = abort_and_forget  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


if __name__ == "__main__":
    main()
