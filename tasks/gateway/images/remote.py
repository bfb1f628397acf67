"""Images behind links: each is fetched by a process of its own and put into the request, so that no engine asks out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.gateway.errors import Refusal
from tasks.gateway.images.fetch import LIMIT_S
from tasks.gateway.images.parts import ImagePart

PROGRAM = Path(__file__).with_name("fetch.py")
MOST = 8
"""Links of one request."""
AT_ONCE = 4
"""Fetches of the whole gateway."""
LONGEST_URL = 4096
_KEPT = ("SSL_CERT_FILE", "SSL_CERT_DIR", "LANG")


class RemoteImages:
    """Brings in what links lead to. Made inside the event loop."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def bring_in(self, images: Sequence[ImagePart]) -> Refusal | None:
        """Put the images themselves in place of their https links; return the first reason why one is not there."""
        links = [image for image in images if image.url.startswith("https://")]
        if len(links) > MOST:
            return _refusal(links[MOST], f"is one link too many: a request may hold {MOST} of them")
        outcomes = await asyncio.gather(*(self._put(image) for image in links))
        return next((outcome for outcome in outcomes if outcome), None)

    async def _put(self, image: ImagePart) -> Refusal | None:
        if len(image.url) > LONGEST_URL:
            return _refusal(image, f"has more than {LONGEST_URL} characters")
        async with self._turns:
            code, answer, reason = await _fetched(image.url)
        if code:
            return _refusal(image, reason or "could not be fetched")
        kind, _, content = answer.partition(b"\n")
        image.put(kind.decode(), base64.b64encode(content).decode())
        return None


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


async def _fetched(url: str) -> tuple[int, bytes, str]:
    """Run the program that fetches; return its code, what it wrote, and its last words."""
    pipe = asyncio.subprocess.PIPE
    argv, environment = (sys.executable, "-I", str(PROGRAM)), _environment()
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        async with asyncio.timeout(LIMIT_S + 5):
            answer, reason = await process.communicate(url.encode() + b"\n")
    except TimeoutError:
        return 1, b"", f"did not come within {LIMIT_S:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode or 0, answer, reason.decode(errors="replace").strip()[-200:]


def _refusal(image: ImagePart, reason: str) -> Refusal:
    return Refusal(400, f"The link in `{image.field}` {reason}.", "image_not_fetched", image.field)
