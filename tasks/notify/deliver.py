"""Deliver messages to a target, as a job: tried again for about a day while a target does not take them."""

from __future__ import annotations

import hashlib
import hmac
import json
import platform
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from state import settings
from state.errors import MlxqError
from state.notify import notices, targets
from state.notify.targets import NotifyTarget, TargetKind
from state.paths import Home
from tasks.notify import http_request, program
from tasks.plan import notices as plan
from tasks.plan.notices import Notification
from tasks.queue import Context, job
from tasks.system import tool
from tasks.system.child import Later

NTFY = {"error": (5, "rotating_light"), "warning": (4, "warning"), "ok": (3, "white_check_mark")}
"""Priority and tag of a message at ntfy (docs.ntfy.sh/publish)."""
JSON = {"Content-Type": "application/json", "User-Agent": "mlxq"}
SCRIPT = (
    *("-e", "on run argv"),
    *("-e", "display notification (item 2 of argv) with title (item 1 of argv)"),
    *("-e", "end run"),
)
"""The message is an argument of the script, never a part of it."""


@job("notify")
def notify(context: Context, target: str) -> dict[str, int]:
    """Deliver what a target has not got yet, as one message. Returns {"changes"}. Raises Later in quiet hours.

    One that is delivered right before the worker dies is delivered again, with the same id.
    """
    destination = targets.read(targets.file(context.home)).get(target)
    changes = notices.pending(context.db, target)
    if destination is None or not changes:
        return {"changes": 0}
    if wait_s := quiet_s(context.home, destination):
        raise Later("waits for the end of the quiet hours", wait_s)
    send(destination, plan.compose(changes, platform.node(), time.time()))
    notices.delivered(context.db, target, changes[-1].id)
    return {"changes": len(changes)}


@job("notify_test")
def notify_test(context: Context, target: str) -> dict[str, str]:
    """Deliver a test message, during quiet hours too. Returns {"target"}. Raises NotFound, Offline, MlxqError."""
    destination = targets.find(targets.file(context.home), target)
    send(destination, plan.trial(target, platform.node(), time.time()), hint="mlxq notify list")
    return {"target": target}


def quiet_s(home: Home, destination: NotifyTarget) -> int:
    """Return how many seconds a target is left in peace."""
    now = time.localtime()
    quiet_hours: str = settings.load(home)["quiet-hours"]
    return 0 if destination.always else plan.quiet_left_s(quiet_hours, now.tm_hour, now.tm_min)


def send(target: NotifyTarget, message: Notification, *, hint: str = "") -> None:
    """Deliver a message. Raises Offline when trying again can help, else MlxqError.

    `hint`: the next command after a failure that has no better one; by default a test.
    """
    try:
        SENDERS[target.kind](target, message)
    except MlxqError as problem:
        problem.hint = problem.hint or hint or f"mlxq notify test {target.name}"
        raise


def ping(target: NotifyTarget) -> None:
    """Request the URL of a deadman target. Raises Offline, MlxqError."""
    http_request.send(target.name, "GET", target.url, headers={"User-Agent": "mlxq"})


def _webhook(target: NotifyTarget, message: Notification) -> None:
    body = json.dumps(message.document()).encode()
    headers = JSON | signed(target.secret, message.id, int(message.at), body)
    http_request.send(target.name, "POST", target.url, body=body, headers=headers)


def signed(secret: str, identifier: str, at: int, body: bytes) -> dict[str, str]:
    """Return the headers that sign a document as Standard Webhooks 1.0 does, `at` in unix seconds.

    HMAC-SHA256 of "id.timestamp.body"; a secret that begins with whsec_ is base64 (standardwebhooks.com).
    """
    content = b".".join([identifier.encode(), str(at).encode(), body])
    digest = hmac.new(_key(secret), content, hashlib.sha256).digest()
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{b64encode(digest).decode()}",
    }


def _key(secret: str) -> bytes:
    return b64decode(secret.removeprefix(targets.WHSEC)) if secret.startswith(targets.WHSEC) else secret.encode()


def _ntfy(target: NotifyTarget, message: Notification) -> None:
    """Publish as JSON to the server's root: a header takes no text but ASCII."""
    parts = urlsplit(target.url)
    priority, tag = NTFY[message.severity]
    document = {"topic": parts.path[1:], "title": message.title, "message": message.text}
    body = json.dumps(document | {"priority": priority, "tags": [tag]}).encode()
    headers = JSON | ({"Authorization": f"Bearer {target.secret}"} if target.secret else {})
    http_request.send(target.name, "POST", f"{parts.scheme}://{parts.netloc}/", body=body, headers=headers)


def _command(target: NotifyTarget, message: Notification) -> None:
    variables = {"MLXQ_TITLE": message.title, "MLXQ_MESSAGE": message.text}
    program.run(target.name, target.argv, json.dumps(message.document()).encode(), variables)


def _macos(target: NotifyTarget, message: Notification) -> None:
    output = tool.run("osascript", *SCRIPT, message.title, message.text)
    if output.code:
        raise MlxqError(f"macOS did not show the message of the notification target {target.name}: {output.message}")


def _deadman(target: NotifyTarget, _message: Notification) -> None:
    ping(target)


SENDERS: Mapping[TargetKind, Callable[[NotifyTarget, Notification], None]] = {
    "webhook": _webhook,
    "ntfy": _ntfy,
    "command": _command,
    "macos": _macos,
    "deadman": _deadman,
}
