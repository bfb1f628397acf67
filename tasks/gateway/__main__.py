"""The program of the gateway process: LiteLLM's proxy 1.106.2, with what its command line cannot say.

Run as `python -P -m tasks.gateway CONFIG PORT`; keys come by the environment.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import yaml

from state.paths import Home
from tasks.gateway import gc_between_steps
from tasks.gateway.request_context import Call
from tasks.gateway.routes import Names
from tasks.plan import gateway as plan
from tasks.plan.gateway import LOOPBACK

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tasks.gateway.engine_transport import Wire

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
    faulthandler.enable()
    gc_between_steps.leave_alone()
    serve(wanted)


def serve(wanted: argparse.Namespace) -> None:
    """Put the hook around LiteLLM and under it, and run it."""
    import uvicorn
    from litellm.proxy.hooks import PROXY_HOOKS

    PROXY_HOOKS.clear()  # LiteLLM's own limits and budgets: the door does the limits, and they take a tenth of its time
    from litellm.proxy.proxy_server import app

    from tasks.gateway import routes
    from tasks.gateway.litellm_auth import ring
    from tasks.gateway.middleware import Door
    from tasks.gateway.priority import Queue
    from tasks.gateway.server import Server
    from tasks.gateway.usage_counter import Counter

    home = Home(Path(os.environ["MLXQ_HOME"]))
    names = routes.names(yaml.safe_load(Path(wanted.config).read_text(encoding="utf-8")), os.environ)
    counter = Counter(home)
    fit(app, _wire(home, names))

    def count(call: Call) -> None:
        if not server.proving:
            counter.add(call)

    door = Door(app, names, ring(), Queue(), count)
    settled = uvicorn.Config(door, log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_S)
    generation, trial = int(os.environ.get("MLXQ_GENERATION", "0")), os.environ.get(plan.TRIAL)
    try:
        server = Server(settled, home, generation, _addresses(wanted), int(trial) if trial else None)
    except OSError as problem:
        sys.exit(str(problem))
    with counter.writing():
        server.serve_all()
    for number in server.ended_by:
        signal.raise_signal(number)
    if not server.started:
        sys.exit(1)


def _addresses(wanted: argparse.Namespace) -> list[tuple[str, int]]:
    """Give where to listen: always on loopback too, where mlxq itself asks."""
    return [(host, wanted.port) for host in dict.fromkeys([LOOPBACK, wanted.host])]


def fit(app: FastAPI, wire: Wire) -> None:
    """Have LiteLLM ask engines through the wire and keys of the door's ring, and leave out what nobody reads."""
    import litellm
    from litellm.proxy.auth.user_api_key_auth import user_api_key_auth

    from tasks.gateway import litellm_accounting, litellm_auth, litellm_client

    litellm.aclient_session = httpx.AsyncClient(transport=wire)
    litellm_client.install(wire)
    litellm_accounting.spare()
    app.dependency_overrides[user_api_key_auth] = litellm_auth.caller


def _wire(home: Home, names: Names) -> Wire:
    """Give LiteLLM's way to the engines."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    from state import cloud_spend
    from tasks.gateway.cloud_budget import Purse
    from tasks.gateway.engine_transport import Wire
    from tasks.gateway.poison_requests import Guard

    purse = Purse(cloud_spend.place(home), float(os.environ["MLXQ_CLOUD_CAP_USD"]))
    inner = AsyncHTTPHandler.create_async_transport() or httpx.AsyncHTTPTransport()
    native = os.environ["MLXQ_BACKEND"] == "metal"
    return Wire(inner, names, Guard(), purse, native_schema=native)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tasks.gateway")
    parser.add_argument("config")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default=LOOPBACK)
    return parser.parse_args()


def log_briefly() -> None:
    """Date every line, and drop LiteLLM's own: a refused request is a traceback there, with what users wrote."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not record.name.startswith("LiteLLM"))
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING, handlers=[handler]
    )


def keep_out(*modules: str) -> None:
    """Make imports of `modules` fail at once.

    LiteLLM tries to import both on every request and fails, as what they need is not installed; searching for
    them takes a third of its time.
    """
    for module in modules:
        sys.modules[module] = None  # pyright: ignore[reportArgumentType] - None is how an import is refused


if __name__ == "__main__":
    main()
