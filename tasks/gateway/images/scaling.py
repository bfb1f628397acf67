"""Images on their way into an engine: decoded and, where they are large, scaled down, before the engine sees them.

vllm-mlx answers 500 for an image that cannot be decoded, as for a fault of its own, and neither engine bounds what all
images of a request take together. Engine processes load this file by its path; Pillow is in both engines' locks.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

PATH = "/v1/chat/completions"
"""The gateway asks for images nowhere else."""


FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp"})


class Undecodable(Exception):
    """An image is damaged, or too large."""


def keep_files_in(folder: Path) -> None:
    """Have the temporary files of this process, which hold images that users sent, in `folder`; older ones go."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    tempfile.tempdir = str(folder)


def _make_folder() -> None:
    """Make the temporary folder once more where a purge of the prompt cache took it."""
    Path(tempfile.gettempdir()).mkdir(mode=0o700, parents=True, exist_ok=True)


def _delete_files() -> None:
    """Delete the images that the engine wrote to its temporary folder; it keeps them until it ends."""
    for file in Path(tempfile.gettempdir()).iterdir():
        if file.suffix in SUFFIXES:
            file.unlink(missing_ok=True)


class Scaled:
    """An ASGI application that hands images of at most `limits.share` pixels to another one, or answers 400.

    `limits` is the module catalog.images; `keep_files_in` was called before.
    """

    def __init__(self, app: Any, limits: Any) -> None:
        self._app = app
        self._limits = limits
        self._turn = asyncio.Lock()
        self._running = 0
        """Requests with images that are being answered."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        content = await _body(receive)
        if content is None or b'"image_url"' not in content:
            await self._app(scope, _again(content, receive), send)
            return
        self._running += 1
        try:
            await self._serve(scope, content, receive, send)
        except Undecodable as problem:
            await _refuse(send, str(problem))
        finally:
            self._running -= 1
            if not self._running:
                _delete_files()

    async def _serve(self, scope: Any, content: bytes, receive: Any, send: Any) -> None:
        _make_folder()
        async with self._turn:  # a decoded photo takes 200 MB
            content = await asyncio.to_thread(_prepared, content, self._limits)
        scope = scope | {"headers": _with_length(scope["headers"], len(content))}
        await self._app(scope, _again(content, receive), send)


async def _body(receive: Any) -> bytes | None:
    """Return a request's body; None where its client left."""
    parts: list[bytes] = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
    return None


def _again(content: bytes | None, receive: Any) -> Any:
    """Return what hands out a body that was read before, and then what comes after it."""
    waiting = [
        {"type": "http.disconnect"}
        if content is None
        else {"type": "http.request", "body": content, "more_body": False}
    ]

    async def take() -> Any:
        return waiting.pop() if waiting else await receive()

    return take


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept_headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept_headers, (b"content-length", str(length).encode())]


def _prepared(content: bytes, limits: Any) -> bytes:
    """Return a chat's body with each image decodable and small enough. Raises Undecodable."""
    body = json.loads(content)
    parts = [
        part["image_url"]
        for message in body["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part.get("type") == "image_url"
    ]
    for part in parts:
        part["url"] = prepared(part["url"], limits.share(len(parts)), limits.MOST_PIXELS)
    return json.dumps(body).encode()


def prepared(url: str, share: int, most: int) -> str:
    """Return the data URL of an image that has at most `share` pixels. Raises Undecodable, with more than `most` too.

    One that is small enough stays as it is, byte by byte, so that the engine's caches know it again.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=FORMATS) as image:
            if image.width * image.height > most:
                raise Undecodable(f"an image has {image.width} x {image.height} pixels")
            small = _small(image, share)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        raise Undecodable("an image could not be decoded") from problem
    return f"data:image/png;base64,{_png(small)}" if small else url


def _small(image: Any, share: int) -> Any:
    """Decode an image, and return it scaled down and turned as its camera was; None where it has few enough pixels."""
    from PIL import ImageOps

    scale = (share / (image.width * image.height)) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    if scale < 1:
        image.draft("RGB", size)  # a JPEG is decoded at a fraction of its size
    image.load()
    return None if scale >= 1 else ImageOps.exif_transpose(image.convert("RGB").resize(size))


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


async def _refuse(send: Any, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "code": "invalid_image"}
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": content})
