"""The targets of notifications. Their addresses and secrets are in a file of mode 0600, as keys are."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from state import files, keys
from state.classes import dataclass
from state.errors import Damaged, MlxqError, NotFound, UsageProblem
from state.paths import Home

TargetKind = Literal["webhook", "ntfy", "command", "macos", "deadman"]
KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
WITH_URL = frozenset({"webhook", "ntfy", "deadman"})
SCHEMES = frozenset({"http", "https"})
MOST = 5
"""Targets at most: each may hold one thread of the worker's queue for as long as its server does not answer."""
LONGEST_URL = 2000
SHORTEST_SECRET = 8
SECRET_BYTES = range(24, 65)
WHSEC = "whsec_"
"""How the base64 secrets of Standard Webhooks begin (standardwebhooks.com)."""
_TOPIC = r"/[A-Za-z0-9_-]{1,64}"
"""The path of an ntfy topic (ntfy's topicRegex)."""
_PRINTABLE = r"[!-~]+"


@dataclass(frozen=True)
class NotifyTarget:
    """Where notifications go."""

    name: str
    kind: TargetKind
    url: str = field(default="", repr=False)
    argv: tuple[str, ...] = ()
    """The program of a command, with its arguments."""
    secret: str = field(default="", repr=False)
    """What a webhook's documents are signed with, or an ntfy server's access token."""
    always: bool = False
    """Whether it gets messages during quiet hours too."""

    @property
    def shown(self) -> str:
        """Return where it goes as it may be printed: paths of webhooks and names of topics are secrets."""
        if self.kind in WITH_URL:
            parts = urlsplit(self.url)
            return f"{parts.scheme}://{parts.netloc}/…"
        return " ".join(self.argv) if self.kind == "command" else "this Mac"


def file(home: Home) -> Path:
    """Return the file of the targets."""
    return home.notify_targets


def read(path: Path) -> dict[str, NotifyTarget]:
    """Return every target by its name; an absent file holds none. Raises Damaged, MlxqError when others may read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        targets = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, UsageProblem, RecursionError) as problem:
        raise Damaged(f"Cannot read the notification targets in {path}.", hint=f"mv {path} {path}.damaged") from problem
    if mode & 0o077:
        raise MlxqError(f"Other users may read {path} (mode {mode:04o}).", hint=f"chmod 600 {path}")
    return {target.name: target for target in targets}


def find(path: Path, name: str) -> NotifyTarget:
    """Return one target. Raises NotFound."""
    target = read(path).get(name)
    if target is None:
        raise NotFound(f"There is no notification target {name}.", hint="mlxq notify list")
    return target


def add(path: Path, target: NotifyTarget) -> None:
    """Add a target. Raises UsageProblem when it is not allowed, its name is taken, or there are MOST already."""
    check(target)
    _check_secret(target)
    with _changing(path):
        targets = read(path)
        if target.name in targets:
            raise UsageProblem(
                f"There is a notification target {target.name} already.", hint=f"mlxq notify remove {target.name}"
            )
        if len(targets) >= MOST:
            raise UsageProblem(f"There are {MOST} notification targets already.", hint="mlxq notify list")
        _write(path, {**targets, target.name: target})


def remove(path: Path, name: str) -> None:
    """Remove a target. Raises NotFound."""
    with _changing(path):
        find(path, name)
        _write(path, {other: target for other, target in read(path).items() if other != name})


def generate_secret() -> str:
    """Return a key of 192 random bits in the form of Standard Webhooks (standardwebhooks.com): whsec_ and base64."""
    import secrets  # hmac, and with it OpenSSL
    from base64 import b64encode

    return f"{WHSEC}{b64encode(secrets.token_bytes(24)).decode()}"


def check(target: NotifyTarget) -> None:
    """Raise UsageProblem for a target that is not allowed. No message repeats an address or a secret."""
    if not re.fullmatch(keys.NAME, target.name):
        raise UsageProblem(f"{target.name!r} is no name for a target: small letters, digits, dots and dashes.")
    if target.kind not in KINDS:
        raise UsageProblem(f"There is no kind of target {target.kind!r}; there is: {', '.join(KINDS)}.")
    if target.kind in WITH_URL:
        _check_url(target)
    if (target.kind == "command") != bool(target.argv):
        raise UsageProblem(
            "A target of the kind command, and no other, takes a program.",
            hint="mlxq notify add NAME command -- /path/to/program ARGUMENT",
        )
    if any("\0" in word for word in target.argv):
        raise UsageProblem("An argument of the program has a zero byte.")
    if target.secret and not (re.fullmatch(_PRINTABLE, target.secret) and len(target.secret) >= SHORTEST_SECRET):
        raise UsageProblem(f"A secret is at least {SHORTEST_SECRET} printable characters without blanks.")


def _check_secret(target: NotifyTarget) -> None:
    """Hold a new secret of Standard Webhooks to its form: 24 to 64 bytes as base64. Raises UsageProblem."""
    if target.kind != "webhook" or not target.secret.startswith(WHSEC):
        return
    from base64 import b64decode

    try:
        size = len(b64decode(target.secret.removeprefix(WHSEC), validate=True))
    except ValueError:
        size = 0
    if size not in SECRET_BYTES:
        raise UsageProblem(
            f"A secret that begins with {WHSEC} goes with {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} bytes as base64.",
            hint=f"mlxq notify add {target.name} webhook URL   # makes a secret",
        )


def _check_url(target: NotifyTarget) -> None:
    """Hold an address to what is allowed: http or https, a host, no password. Raises UsageProblem."""
    if not re.fullmatch(_PRINTABLE, target.url) or len(target.url) > LONGEST_URL:
        raise UsageProblem(
            f"The URL of {target.name} must be at most {LONGEST_URL} printable ASCII characters without blanks."
        )
    try:
        parts = urlsplit(target.url)
        fine = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        raise UsageProblem(f"The URL of {target.name} cannot be read.") from None
    if not fine:
        raise UsageProblem(f"The URL of {target.name} must begin with http:// or https:// and name a host.")
    if "@" in parts.netloc or parts.fragment:
        raise UsageProblem(
            f"The URL of {target.name} has a user, a password or a fragment; mlxq sends none of them.",
            hint="mlxq notify add --help",
        )
    if target.kind == "ntfy" and (not re.fullmatch(_TOPIC, parts.path) or parts.query):
        raise UsageProblem(
            f"The URL of {target.name} must name a topic of an ntfy server, such as https://ntfy.sh/my-topic."
        )


def _parse(text: str) -> list[NotifyTarget]:
    """Return the targets of a file's text. Raises as `_target` does."""
    rows: Any = json.loads(text)
    if not isinstance(rows, list):
        raise TypeError(rows)
    return [_target(row) for row in cast("list[dict[str, Any]]", rows)]


def _target(row: dict[str, Any]) -> NotifyTarget:
    """Return a target as `_write` wrote it. Raises ValueError, TypeError, KeyError, UsageProblem."""
    argv = tuple(str(word) for word in row["argv"])
    target = NotifyTarget(
        str(row["name"]), row["kind"], str(row["url"]), argv, str(row["secret"]), always=row["always"] is True
    )
    check(target)
    return target


def _changing(path: Path) -> AbstractContextManager[None]:
    """Let one process at a time change the targets."""
    return files.changing(
        path, lambda problem: MlxqError(f"Cannot write the notification targets to {path}: {problem.strerror}.")
    )


def _write(path: Path, targets: Mapping[str, NotifyTarget]) -> None:
    """Replace the file, inside `_changing`."""
    files.replace_private(path, json.dumps([asdict(target) for target in targets.values()], indent=1))
