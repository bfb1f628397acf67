"""What starting a service takes: its command, its environment, its port.

The hash of it tells whether a running process is still what the settings and the stack ask for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from state import fleet, safe_mode, secrets, settings, stack
from state import keys as app_keys
from state.config import text
from state.db import Database
from state.errors import Damaged, NotSetUp
from state.paths import Home
from tasks.engines import installed, serving
from tasks.engines.choice import EngineChoice
from tasks.front import configuration, proxy
from tasks.front import plan as front
from tasks.front.plan import FrontFiles
from tasks.plan import gateway, health, page
from tasks.plan.environment import KEPT
from tasks.plan.safe_mode import reduced
from tasks.supervision import encryption
from tasks.weights import model_dir

PACKAGES = Path(__file__).parents[2]
"""The folder that mlxq's packages are in."""
ENGINE_CODE = (
    "engines/*_program.py",
    "engines/mlx_lm_sharded/*.py",
    "engines/embedding_model.py",
    "engines/asgi.py",
    "system/own_log.py",
)
"""mlxq's own files that run in an engine's process, in tasks."""
GATEWAY_START_S = 120.0
PAGE_START_S = 30.0
FRONT_START_S = 180.0
"""Importing LiteLLM's proxy takes 5 s of a processor that others need too."""
FRONT_CODE = (
    "front/front_program.py",
    "front/front_door.py",
    "front/front_plugin.py",
    "front/node_choice.py",
    "front/node_transport.py",
    "engines/asgi.py",
    "gateway/tls.py",
    "system/own_log.py",
)
"""mlxq's own files that run in the front's process, in tasks; all are read as it starts."""


@dataclass(frozen=True)
class LaunchSpec:
    """All that starting a service takes."""

    argv: list[str]
    environment: Callable[[int], dict[str, str]]
    """generation -> the child's whole environment, keys included; never stored."""
    spec_hash: str
    """Changes when a running process would no longer be what is wanted."""
    port: int
    """Where it will listen."""
    start_limit_s: float
    release: str = ""
    """Of an engine: its name and version."""
    choice: EngineChoice | None = None
    """Why this engine serves."""
    proved: bool = False
    """Whether an engine made a token when it was started so before: then the request that it wakes for is its first."""


def launch_spec(db: Database, home: Home, name: str) -> LaunchSpec:
    """Return how `name` is to be started now. Raises NotFound, NotSetUp, Damaged."""
    if name == page.SERVICE:
        return _page(home)
    if name == front.SERVICE:
        files = configuration.wanted(db, home)
        configuration.write(home, files)
        return _front(home, files)
    keys = secrets.ensure(home.secrets)
    return gateway_spec(db, home, home.gateway_config) if name == gateway.SERVICE else _engine(db, home, keys, name)


def planned(db: Database, home: Home, name: str) -> LaunchSpec:
    """Return how `name` would be started, to be shown: nothing is written, and its keys are empty.

    A start makes the keys and gateway.yaml where there are none. Raises as `launch_spec`.
    """
    keys = {secrets.MASTER: "", secrets.TIER: ""}
    if name == front.SERVICE:
        return _front(home, None)
    if name == gateway.SERVICE:
        return _gateway(db, home, home.gateway_config, keys, "")
    return _page(home) if name == page.SERVICE else _engine(db, home, keys, name)


def _engine(db: Database, home: Home, keys: dict[str, str], name: str) -> LaunchSpec:
    engine = reduced(stack.engine(db, name), safe_mode.of(db, name).level)
    weights = model_dir.require_weights(db, engine)
    launch = serving.launch(db, home, engine, keys[secrets.TIER], serving.backend_of(db))
    size = model_dir.read(weights.parent, lambda: sum(file.stat().st_size for file in weights.glob("*.safetensors")))
    spec_hash = _engine_hash(launch.argv, launch.environment(0), launch.release)
    limit_s = health.start_limit_s(size)
    return LaunchSpec(launch.argv, launch.environment, spec_hash, engine.port, limit_s, launch.release, launch.choice)


def gateway_spec(db: Database, home: Home, config: Path) -> LaunchSpec:
    """Return how a gateway is to be started with `config`.

    Raises NotSetUp without a configuration, UsageProblem where the settings do not go together, Damaged.
    """
    return _gateway(db, home, config, secrets.ensure(home.secrets), _text(config))


def _gateway(db: Database, home: Home, config: Path, keys: dict[str, str], content: str) -> LaunchSpec:
    values = settings.load(home)
    app_keys.admit(app_keys.file(home), values["gateway-host"], fleet=fleet.is_on(db))
    port: int = values["litellm-port"]
    tls = encryption.ensure(home, values)
    argv = gateway.argv(sys.executable, str(config), port, host=values["gateway-host"], tls=tls)
    cloud = {secrets.CLOUD: values["openrouter-key"]} if values["openrouter-key"] else {}

    def environment(generation: int) -> dict[str, str]:
        return gateway.environment(
            {**keys, **cloud},
            base=os.environ,
            home=str(home.root),
            backend=serving.backend_of(db),
            generation=generation,
            cloud_cap_usd=values["cloud-cap-usd"],
        )

    spec_hash = _spec_hash([*argv, content], environment(0), [_release("litellm"), _release("mlxq")])
    return LaunchSpec(argv, environment, spec_hash, port, GATEWAY_START_S)


def _text(config: Path) -> str:
    """Return the gateway's configuration. Raises NotSetUp, Damaged."""
    try:
        content = text.read(config)
    except text.Unreadable as problem:
        raise Damaged(f"Cannot read {config}: {problem.reason}.", hint="mlxq up") from problem
    if content is None:
        raise NotSetUp("The gateway has no configuration yet.", hint="mlxq setup")
    return content


def _page(home: Home) -> LaunchSpec:
    port: int = settings.load(home)["page-port"]
    if not port:
        raise NotSetUp("The page is turned off.", hint="mlxq config reset page-port")
    argv = page.argv(sys.executable, port)

    def environment(generation: int) -> dict[str, str]:
        return page.environment(base=os.environ, home=str(home.root), generation=generation)

    spec_hash = _spec_hash(argv, environment(0), [_release("starlette"), _release("mlxq")])
    return LaunchSpec(argv, environment, spec_hash, port, PAGE_START_S)


def _front(home: Home, files: FrontFiles | None) -> LaunchSpec:
    """Return how the front is to be started; of `files` the part counts that it does not read again while it serves."""
    values = settings.load(home)
    if not values["front"]:
        raise NotSetUp("The front is turned off.", hint="mlxq config set front true")
    python = proxy.python(home)
    if python is None and files is not None:
        raise NotSetUp(f"The front's program, LiteLLM's proxy {front.LITELLM}, is not installed.", hint="mlxq up front")
    host: str = values["front-host"]
    app_keys.admit(app_keys.file(home), host, "front")
    tls = encryption.ensure(home, values, "front-host")
    interpreter = str(python or installed.python(proxy.folder(home)))
    argv = front.argv(interpreter, str(proxy.PROGRAM), str(home.front), values["front-port"], host=host, tls=tls)

    def environment(generation: int) -> dict[str, str]:
        return front.environment(base=os.environ, home=str(home.root), generation=generation)

    settled = json.dumps(front.settled(files.proxy), sort_keys=True) if files else ""
    spec_hash = _spec_hash([*_anywhere(argv), settled], environment(0), [front.LITELLM, _code(FRONT_CODE)])
    return LaunchSpec(argv, environment, spec_hash, values["front-port"], FRONT_START_S)


def _release(package: str) -> str:
    return f"{package} {version(package)}"


def _engine_hash(argv: Sequence[str], environment: dict[str, str], release: str) -> str:
    """Hash what an engine's process is made of: of mlxq the files that run in it, wherever mlxq is installed.

    So an upgrade of mlxq restarts an engine only where something of the engine changed.
    """
    return _spec_hash(_anywhere(argv), environment, [release, _code(ENGINE_CODE)])


def _anywhere(argv: Sequence[str]) -> list[str]:
    """Return a command line without the folder that mlxq is installed in."""
    return [word.removeprefix(str(PACKAGES)) for word in argv]


@functools.cache
def _code(patterns: Sequence[str]) -> str:
    """Return a hash of the files of mlxq that run in the process of another program."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted((PACKAGES / "tasks").glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _spec_hash(argv: Sequence[str], environment: dict[str, str], releases: Sequence[str]) -> str:
    """Hash what a process is made of; what merely leaks in from the worker's environment does not count."""
    ours = {key: value for key, value in environment.items() if key not in KEPT}
    text = json.dumps([list(argv), ours, list(releases)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
