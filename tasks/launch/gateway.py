"""The program of the gateway process: LiteLLM's proxy 1.106.2, with what its command line cannot say.

Run as `python -P -m tasks.launch.gateway CONFIG PORT`; keys come by the environment.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

DRAIN_S = 8
"""Seconds an answer in flight has left after SIGTERM; mlxq kills at 10."""


def main() -> None:
    """Serve until SIGTERM. The port opens only when LiteLLM is ready."""
    wanted = _arguments()
    os.environ["CONFIG_FILE_PATH"] = wanted.config
    os.environ["GRACEFUL_SHUTDOWN_TIMEOUT"] = str(DRAIN_S)
    sys.stdout = sys.stderr  # LiteLLM prints; a service's one log is stderr
    log_briefly()
    keep_out("prisma", "litellm.integrations.otel.logger")
    import uvicorn
    from litellm.proxy.proxy_server import app

    uvicorn.run(
        app,
        host=wanted.host,
        port=wanted.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tasks.launch.gateway")
    parser.add_argument("config")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    return parser.parse_args()


def log_briefly() -> None:
    """Date every line; requests are counted elsewhere, so only warnings are worth a line."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)


def keep_out(*modules: str) -> None:
    """Make imports of `modules` fail at once.

    LiteLLM tries to import both on every request and fails, as what they need is not installed; searching for
    them takes a third of its time.
    """
    for module in modules:
        sys.modules[module] = None  # pyright: ignore[reportArgumentType] - None is how an import is refused


if __name__ == "__main__":
    main()
