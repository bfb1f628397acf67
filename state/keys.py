"""Keys for apps: what each may do. The file holds hashes alone; a key is shown once, when it is made."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from state import files
from state.classes import dataclass
from state.config import good, text
from state.errors import Damaged, MlxqError, NotFound, UsageProblem
from state.paths import Home
from state.secrets import generate

NAME = r"[a-z0-9][a-z0-9._-]{0,39}"
FORM = r"sk-mlxq-[A-Za-z0-9_-]{43}"
KeyKind = Literal["app", "fleet", "member"]
"""Who has a key: an app; the node that invited this one, which asks models and jobs; a node that joined this one's
fleet, which says where it is and that it leaves."""


@dataclass(frozen=True)
class Key:
    """The key of an app, or of a node of the fleet."""

    name: str
    digest: str
    """SHA-256 of the key, hex. The key has 256 random bits, so a slow hash would add nothing."""
    created: float
    tiers: tuple[str, ...] = ()
    """Tiers that may be asked for by name; empty: all."""
    rpm: int | None = None
    """Requests a minute; None: no limit."""
    background: bool = False
    """Whether its requests yield to those of other keys."""
    store: bool = True
    """Whether engines may keep its prompts on disk for their next start, and the gateway its thoughts in memory."""
    manage: bool = False
    """Whether it may download and delete models, by Ollama's API."""
    kind: KeyKind = "app"

    def may_ask(self, *names: str) -> bool:
        """Return whether it may ask for what goes by these names."""
        return not self.tiers or any(name in self.tiers for name in names)


def file(home: Home) -> Path:
    """Return the file of the keys."""
    return home.app_keys


def digest(key: str) -> str:
    """Return the form in which a key is stored."""
    import hashlib  # OpenSSL takes 6 ms of every command

    return hashlib.sha256(key.encode()).hexdigest()


def read(path: Path) -> dict[str, Key]:
    """Return every key by its digest; an absent file holds none. Raises Damaged."""
    try:
        written = text.read(path)
        keys = {} if written is None else _parse(written)
    except (text.Unreadable, ValueError, TypeError, KeyError, RecursionError) as problem:
        raise Damaged(
            f"Cannot read the apps' keys in {path}.",
            done="The gateway takes the keys that were valid last.",
            hint=f"mv {path} {path}.damaged",
        ) from problem
    if written is not None:
        good.keep(Home(path.parent), path.name, written)
    return keys


def usable(path: Path) -> tuple[dict[str, Key], Damaged | None]:
    """Return the keys that count, and what is wrong: those of the last valid file where this one cannot be read."""
    try:
        return read(path), None
    except Damaged as problem:
        last = good.read(Home(path.parent), path.name)
        return (_parse(last) if last else {}), problem


def _parse(written: str) -> dict[str, Key]:
    """Return the keys of a file's text by their digests. Raises ValueError, TypeError, KeyError, RecursionError."""
    rows: list[dict[str, Any]] = json.loads(written)
    return {key.digest: key for key in map(_key, rows)}


def create(
    path: Path,
    name: str,
    *,
    tiers: tuple[str, ...] = (),
    rpm: int | None = None,
    background: bool = False,
    store: bool = True,
    manage: bool = False,
    kind: KeyKind = "app",
    secret: str | None = None,
) -> str:
    """Make a key and return it; it cannot be shown again. Raises UsageProblem when the name is taken or odd.

    `secret`: a key that mlxq made on another machine, which is to be valid here too.
    """
    if secret is not None and not re.fullmatch(FORM, secret):
        raise UsageProblem("This is no key that mlxq made: sk-mlxq- and 43 characters.", hint="mlxq keys create NAME")
    if not re.fullmatch(NAME, name):
        raise UsageProblem(f"{name!r} is no name for a key: small letters, digits, dots and dashes.")
    with _changing(path):
        keys = read(path)
        if name in {key.name for key in keys.values()}:
            raise UsageProblem(f"There is a key named {name} already.", hint=f"mlxq keys revoke {name}")
        secret = secret or generate()
        if digest(secret) in keys:
            raise UsageProblem(f"This key is here already, named {keys[digest(secret)].name}.", hint="mlxq keys list")
        entry = Key(name, digest(secret), time.time(), tiers, rpm, background, store, manage, kind)
        _write(path, {**keys, entry.digest: entry})
    return secret


def revoke(path: Path, name: str) -> None:
    """Take a key away; the gateway refuses it from its next request on. Raises NotFound."""
    with _changing(path):
        keys = read(path)
        remaining = {key_digest: key for key_digest, key in keys.items() if key.name != name}
        if len(remaining) == len(keys):
            raise NotFound(f"There is no key named {name}.", hint="mlxq keys list")
        _write(path, remaining)


def admit(path: Path, host: str, service: str = "gateway", *, fleet: bool = False) -> None:
    """Let a service listen on `host`. `fleet`: whether it is there for nodes of a fleet, which get keys by joining.

    Raises UsageProblem when other machines could reach it while no app has a key: people would pass mlxq's own
    around, which opens everything and cannot be revoked.
    """
    import ipaddress

    if not fleet and not ipaddress.ip_address(host).is_loopback and not usable(path)[0]:
        raise UsageProblem(
            f"The {service} listens on {host} only when apps have keys of their own, and there is none.",
            hint="mlxq keys create my-app",
        )


def _key(row: dict[str, Any]) -> Key:
    tiers = tuple(str(tier) for tier in row["tiers"])
    store, manage = row.get("store", True), row.get("manage", False)  # keys of mlxq up to 0.1 have none
    return Key(
        row["name"],
        row["digest"],
        row["created"],
        tiers,
        row["rpm"],
        row["background"],
        store,
        manage,
        row.get("kind", "app"),
    )


def _changing(path: Path) -> AbstractContextManager[None]:
    """Let one process at a time change the keys: a command, a program that is connected, a node that joins."""
    return files.changing(
        path, lambda problem: MlxqError(f"Cannot write the apps' keys to {path}: {problem.strerror}.")
    )


def _write(path: Path, keys: Mapping[str, Key]) -> None:
    """Replace the file, inside `_changing`."""
    files.replace_private(path, written := json.dumps([asdict(key) for key in keys.values()], indent=1))
    good.keep(Home(path.parent), path.name, written)  # at once: a key that was revoked must not count again
