"""The program of an engine process: rapid-mlx 0.16.10, with what its flags cannot say.

Run by the Python of the engine's own environment, where mlxq is not: `PYTHON -P rapid_mlx_program.py serve FOLDER …`.
It imports nothing of mlxq but files by their path. The key comes by RAPID_MLX_API_KEY, HOME is a folder below the
home of mlxq.
"""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parents[1]


def main() -> None:
    """Serve one model until SIGTERM; what it saves, prompts among it, only its user can read."""
    os.umask(0o077)
    Path(os.environ["HOME"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    unstored().unlink(missing_ok=True)
    load(TASKS / "gateway" / "images" / "scaling.py").keep_files_in(Path(os.environ["HOME"], "images"))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    load(TASKS / "system" / "own_log.py").keep_of_service()
    settle_the_server(int(os.environ.get("MLXQ_DRAIN_S", "4")), os.environ.get("RAPID_MLX_API_KEY", ""))
    memory_bytes = int(os.environ.get("MLXQ_MEMORY_BYTES", "0"))
    sys.argv += memory_arguments(memory_bytes)
    cap_wired_limit(importlib.import_module("mlx.core"), memory_bytes)
    # Not its console script: that one asks pip to repair an environment from which something is missing.
    from rapid_mlx.cli import main as serve

    serve()


def load(file: Path) -> Any:
    """Return the module in `file`, which imports nothing of mlxq."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settle_the_server(seconds: int, key: str) -> None:
    """Set uvicorn a limit for answers still running at SIGTERM, none at SIGUSR2, no log, and a lock on every path."""
    import uvicorn
    from rapid_mlx import _uvicorn

    asgi = load(TASKS / "engines" / "asgi.py")
    scaled, image_limits = (
        load(TASKS / "gateway" / "images" / "scaling.py").Scaled,
        load(TASKS.parent / "catalog" / "images.py"),
    )

    def run(app: Any, *, on_server_accepting: Any = None, **wanted: Any) -> None:
        limits: dict[str, Any] = {"timeout_graceful_shutdown": seconds, "log_config": None, "access_log": False}
        server = _uvicorn.AcceptingConnectionsServer(
            uvicorn.Config(
                asgi.locked(scaled(asgi.cancelled_on_disconnect(forgetful(app)), image_limits), key),
                **(wanted | limits),
            ),
            on_server_accepting=on_server_accepting,
        )
        signal.signal(signal.SIGUSR2, lambda _number, _frame: drain(server))
        server.run()
        if not server.started:
            sys.exit(3)

    _uvicorn._run_server = run  # noqa: SLF001 - there is no flag


def unstored() -> Path:
    """Return the file by which the gateway says that the engine has read a prompt that must not be written to disk."""
    return Path(os.environ["HOME"], "no-store")


def forgetful(app: Any) -> Any:
    """Return `app`, which keeps no prompts on disk at its end where the gateway said so."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        async def told() -> Any:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and unstored().exists():
                os.environ["RAPID_MLX_DISABLE_DISK_CACHES"] = "1"  # it looks at this as it begins to save
            return message

        await app(scope, told if scope["type"] == "lifespan" else receive, send)

    return serve


def drain(server: Any) -> None:
    """Take no more requests, and end with code 0 after the last answer, however long that takes."""
    server.config.timeout_graceful_shutdown = None
    server.should_exit = True


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
    """Return the flag for the share of Metal's working set that is the tier's; other back ends have no such limit."""
    import mlx.core as mx

    whole = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    if not whole or not memory_bytes:
        return []
    return ["--gpu-memory-utilization", f"{min(0.95, max(0.02, memory_bytes / int(whole))):.3f}"]


if __name__ == "__main__":
    main()
