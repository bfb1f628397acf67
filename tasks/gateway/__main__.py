"""The program of the gateway process.

Run as `python -P -m tasks.gateway CONFIG PORT`; keys come by the environment, and are taken out of it at once.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import uvicorn
import yaml

from state import keys
from state.metrics import cloud_spend
from state.paths import Home
from state.secrets import CLOUD, MASTER, TIER
from tasks.gateway import gc_between_steps, routes
from tasks.gateway.admission.api_keys import KeyRing
from tasks.gateway.admission.poison_requests import PoisonGuard, record_of
from tasks.gateway.application import Application
from tasks.gateway.cloud.budget import CloudBudget
from tasks.gateway.cloud.openrouter import Cloud
from tasks.gateway.connections import Connection
from tasks.gateway.cooldown import Cooldown
from tasks.gateway.egress import Wall
from tasks.gateway.engine_client import EngineClient
from tasks.gateway.on_demand import OnDemand
from tasks.gateway.relay import Relay
from tasks.gateway.request_context import Call
from tasks.gateway.routes import Routes
from tasks.gateway.server import Server
from tasks.gateway.tls import ServerContext
from tasks.gateway.usage_counter import Counter
from tasks.plan import gateway as plan
from tasks.plan.gateway import LOOPBACK
from tasks.system import certificates, open_files, own_log, prompt_cache

DRAIN_S = 8
"""Seconds an answer in flight has left after SIGTERM; mlxq kills at 10."""
FILES = 10_240
"""Open files wanted: launchd gives 256, and a client and its engine take one each."""


def main() -> None:
    """Serve until SIGTERM."""
    wanted = _arguments()
    sys.stdout = sys.stderr  # a service's one log is stderr
    _log_briefly()
    faulthandler.enable()
    gc_between_steps.leave_alone()
    open_files.raise_limit(FILES)
    own_log.keep_of_service()
    secrets = {name: os.environ.pop(name) for name in (MASTER, TIER, CLOUD) if name in os.environ}
    serve(wanted, secrets)


def serve(wanted: argparse.Namespace, secrets: dict[str, str]) -> None:
    """Put the parts together and run them. Exits with 1 where it cannot serve."""
    home = Home(Path(os.environ["MLXQ_HOME"]))
    table = routes.read(yaml.safe_load(Path(wanted.config).read_text(encoding="utf-8")), os.environ["MLXQ_BACKEND"])
    cloud = _cloud(table, home, secrets)
    counter = Counter(home)

    def start() -> tuple[EngineClient, Relay]:
        client = EngineClient(secrets[TIER])
        guard = PoisonGuard(record=record_of(home), engines=len(table.engines) + (cloud is not None))
        keep_out = partial(prompt_cache.keep_out, home)
        return client, Relay(table, client, guard, Cooldown(), cloud, keep_out=keep_out)

    def count(call: Call) -> None:
        if not server.proving and not call.check:
            counter.add(call)

    ring = KeyRing(keys.file(home), secrets[MASTER], os.environ.pop(plan.TRIAL_KEY, ""), lambda: server.proving)
    wall = _wall(table, wanted.host, has_cloud=cloud is not None)
    on_demand = OnDemand(home, table, os.environ["MLXQ_BACKEND"], wall.allow)
    application = Application(table, ring, start, count, on_demand)
    generation, trial = int(os.environ.get("MLXQ_GENERATION", "0")), os.environ.get(plan.TRIAL)
    wall.stand()
    try:
        tls = ServerContext(certificates.server_file(Path(wanted.tls))) if wanted.tls else None
        port = int(trial) if trial else None
        server = Server(_config(application), home, generation, _addresses(wanted), trial=port, tls=tls)
    except OSError as problem:
        sys.exit(str(problem))
    with counter.writing():
        server.serve_all()
    for number in server.ended_by:
        signal.raise_signal(number)
    if not server.started:
        sys.exit(1)


def _config(application: Application) -> uvicorn.Config:
    """Return uvicorn's settings. asyncio's own loop: uvloop connects past the wall."""
    return uvicorn.Config(
        application,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _cloud(table: Routes, home: Home, secrets: dict[str, str]) -> Cloud | None:
    if not table.cloud_model or CLOUD not in secrets:
        return None
    budget = CloudBudget(cloud_spend.place(home), float(os.environ["MLXQ_CLOUD_CAP_USD"]))
    return Cloud(table.cloud_model, os.environ["MLXQ_CLOUD_URL"], secrets[CLOUD], budget)


def _wall(table: Routes, host: str, *, has_cloud: bool) -> Wall:
    served = [*table.tiers.values(), *(retrieval.route for retrieval in table.retrieval.values())]
    engines = [(LOOPBACK, route.port) for route in served]
    return Wall(engines, os.environ["MLXQ_CLOUD_URL"] if has_cloud else None, [host])


def _addresses(wanted: argparse.Namespace) -> list[tuple[str, int]]:
    """Return where to listen: always on loopback too, where mlxq itself asks."""
    return [(host, wanted.port) for host in dict.fromkeys([LOOPBACK, wanted.host])]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tasks.gateway")
    parser.add_argument("config")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--tls", help="folder of the certificate by which other machines know this gateway")
    return parser.parse_args()


def _log_briefly() -> None:
    """Date every line, and drop LiteLLM's own: it logs a refused request as a traceback, with what users wrote."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not record.name.startswith("LiteLLM"))
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=os.environ.get(plan.LOG_LEVEL, "WARNING"),
        handlers=[handler],
    )


if __name__ == "__main__":
    main()
