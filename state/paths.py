"""What lives where under MLXQ_HOME (default ~/.mlxq)."""

from __future__ import annotations

import os
from pathlib import Path

from state.classes import dataclass
from state.errors import MlxqError


@dataclass(frozen=True)
class Home:
    """One mlxq on this machine: everything it writes lies under `root`, readable by its user alone."""

    root: Path

    @property
    def database(self) -> Path:
        """The truth: jobs, services, stack, events."""
        return self.root / "state.db"

    @property
    def ballast(self) -> Path:
        """Bytes kept in reserve, given up when the disk is full so that the ledger can still write."""
        return self.root / "ballast"

    @property
    def config(self) -> Path:
        """The user's settings."""
        return self.root / "config.yaml"

    @property
    def gateway_config(self) -> Path:
        """What the gateway reads; generated, never edited."""
        return self.root / "gateway.yaml"

    @property
    def secrets(self) -> Path:
        """The keys, as NAME=value lines, mode 0600."""
        return self.root / "secrets.env"

    @property
    def app_keys(self) -> Path:
        """The hashes of the apps' keys."""
        return self.root / "keys.json"

    @property
    def notify_targets(self) -> Path:
        """Where notifications go, mode 0600."""
        return self.root / "notify.json"

    @property
    def logs(self) -> Path:
        """One file a service, and worker.log."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Sockets, locks, and the exit codes the shims keep."""
        return self.root / "run"

    @property
    def wake(self) -> Path:
        """The socket on which the worker is woken."""
        return self.run / "w.sock"

    @property
    def worker_lock(self) -> Path:
        """Held by the worker as long as it lives."""
        return self.run / "worker.lock"

    @property
    def models(self) -> Path:
        """The default place for weights; the setting model-dir overrides it."""
        return self.root / "models"

    @property
    def files(self) -> Path:
        """What clients uploaded, and the results of batches."""
        return self.root / "files"

    @property
    def engines(self) -> Path:
        """Engines with an environment of their own, a folder a version."""
        return self.root / "engines"

    @property
    def front(self) -> Path:
        """What the front reads and counts, and the environment of its program."""
        return self.root / "front"

    @property
    def catalog(self) -> Path:
        """The user's own model files, laid over the shipped ones."""
        return self.root / "catalog"

    @property
    def chats(self) -> Path:
        """The last conversation of `mlxq chat` and the prompts that were typed in it."""
        return self.root / "chats"

    @property
    def tls(self) -> Path:
        """The certificate of the gateway, and the authority that signs it."""
        return self.root / "tls"

    @property
    def versions(self) -> Path:
        """Environments of other versions of mlxq, and the links that say which one is used."""
        return self.root / "versions"

    def backup(self, schema: int) -> Path:
        """Return the copy of state.db from before it was migrated from this schema."""
        return self.root / "backups" / f"state-schema-{schema}.db"

    def log(self, service: str) -> Path:
        """Return the log file of one service, or of the worker."""
        return self.logs / f"{service}.log"

    def make(self) -> Home:
        """Create the folders with mode 0700. Raises MlxqError when the place cannot be written."""
        os.umask(0o077)
        try:
            for folder in (self.root, self.logs, self.run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise MlxqError(
                f"Cannot write to {self.root}: {problem.strerror}.",
                hint="export MLXQ_HOME=/a/folder/you/own",
            ) from problem
        return self


def get_home() -> Home:
    """Return the home that MLXQ_HOME names, or ~/.mlxq."""
    return Home(Path(os.environ.get("MLXQ_HOME") or "~/.mlxq").expanduser().absolute())
