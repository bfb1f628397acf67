"""Machines of a fleet: each a home with a worker, small engines and a gateway, at another address of loopback."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from support.mlxq_home import LIMIT_S, TIER, Mlxq
from support.ports import free_port
from support.recovery import up_with_gateway

from state import settings, stack
from state.paths import Home
from state.stack import Tier
from tasks.front import install
from tasks.front import plan as front
from tasks.front import proxy as front_proxy
from tasks.system import certificates
from tasks.weights import builtin

OTHER = "127.0.0.2"
"""Where a gateway that is open is reached encrypted."""
ALL = "0.0.0.0"


def proxy_environment(root: Path) -> Path:
    """Return LiteLLM's proxy, installed below `root` by its lock; processes that want it at once wait for one."""
    folder = root / f"litellm-proxy-{front.LITELLM}"
    with (root / "proxy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            install.work({"folder": str(folder)}, lambda _: None)
    return folder


class Machine:
    """One node."""

    def __init__(
        self, name: str, root: Path, weights: Path | None = None, *, address: str = OTHER, prefix: Sequence[str] = ()
    ) -> None:
        """`weights`: the built-in model, where it was made already.

        `address`: where other machines reach it; `prefix`: the words that enter its network namespace.
        """
        self.name, self.address, self.prefix = name, address, prefix
        self.home = Home(root).make()
        values = {"page-port": 0, "node-name": name, "node-addresses": address, "litellm-port": free_port()}
        for setting, value in values.items():
            settings.write(self.home, setting, value)
        self.home.models.mkdir(exist_ok=True)
        if weights is not None:
            shutil.copytree(weights, self.home.models / weights.name, copy_function=os.link)
        self.mlxq = Mlxq(self.home, prefix)
        folder = builtin.ensure(self.home.models)
        engine = replace(
            TIER, name="standard", model="smollm2-135m", quant="int4", port=free_port(), weights=str(folder)
        )
        stack.replace(self.mlxq.db, [Tier("standard", engine)])

    @property
    def port(self) -> int:
        return settings.load(self.home)["litellm-port"]

    @property
    def url(self) -> str:
        """Where other machines ask."""
        return f"https://{self.address}:{self.port}"

    def up(self) -> None:
        self.mlxq.work_with_fakes()
        up_with_gateway(self.mlxq, self.port)

    def up_with_scripted(self, slots: int) -> None:
        """Serve with an engine that works at `slots` requests side by side, and does what they order."""
        self.mlxq.work_with_scripted(slots)
        up_with_gateway(self.mlxq, self.port)

    def up_front(self, proxy: Path, redis: str = "") -> None:
        """Serve as a front too; `proxy`: where LiteLLM's proxy is installed (`proxy_environment`)."""
        self.home.front.mkdir(exist_ok=True)
        front_proxy.folder(self.home).symlink_to(proxy)
        for setting, value in {"front": True, "front-host": ALL, "front-redis": redis}.items():
            settings.write(self.home, setting, value)
        self.run("up", "front")

    @property
    def front_url(self) -> str:
        """Where other machines ask its front."""
        return f"https://{self.address}:{settings.load(self.home)['front-port']}"

    def run(self, *words: str, code: int = 0, text: str | None = None) -> str:
        """Run a command and return what it printed; its exit code must be `code`."""
        done = self._done(words, code, text)
        return done.stdout + done.stderr

    def document(self, *words: str) -> dict[str, Any]:
        """Run a command with --json and return what it printed."""
        return json.loads(self._done((*words, "--json"), 0, None).stdout)

    def _done(self, words: Sequence[str], code: int, text: str | None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLXQ_")}
        done = subprocess.run(
            [*self.prefix, sys.executable, "-P", "-m", "mlxq", *words],
            env=environment | {"MLXQ_HOME": str(self.home.root)},
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert done.returncode == code, done.stdout + done.stderr + self.mlxq.logs()
        assert "Traceback" not in done.stderr
        return done

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return what `node list` says, by name."""
        return {entry["name"]: entry for entry in self.document("node", "list")["nodes"]}

    def client(self, key: str = "", address: str | None = None) -> httpx.Client:
        """Return another machine's client that trusts this node alone."""
        context = ssl.create_default_context(cafile=str(certificates.authority_file(self.home.tls)))
        context.check_hostname = False
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(verify=context, trust_env=False, timeout=30, headers=headers, base_url=address or self.url)

    def close(self) -> None:
        self.mlxq.close()
