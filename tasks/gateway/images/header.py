"""What an image is, by its first bytes: one of four formats, and its size. Nothing is decoded here.

Formats: PNG (https://www.w3.org/TR/png-3/), JPEG (ITU T.81, B.2.2), GIF89a, WebP (RFC 9649). What lies about its size
in its header is a case for the engine's decoder, which has the same limit.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

HEAD = 1 << 16
"""Characters of base64 that are decoded first; a JPEG with a long preface is decoded whole."""
FORMATS = ("png", "jpeg", "gif", "webp")
_URL = re.compile(r"data:image/[A-Za-z0-9.+-]{1,40}(?:;[a-z-]{1,40}=[^;,]{0,80}){0,4};base64,", re.IGNORECASE)
_PNG, _GIFS, _JPEG = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"\xff\xd8"
_GIF_HEAD, _WEBP_HEAD = 13, 30
_EXTENSION, _PICTURE, _LOSSLESS, _MARKER = b"!"[0], b","[0], b"/"[0], b"\xff"[0]
"""Bytes that begin a block of a GIF, the size in a lossless WebP, a marker of a JPEG."""
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of JPEG's frames, which hold the size."""
_LONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers of JPEG without a length."""


@dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    format: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Return how many it has."""
        return self.width * self.height


def of_url(url: str) -> Header | None:
    """Return the header of the image in a data URL; None for what is no image of a known format."""
    begin = _URL.match(url, 0, 512)
    if begin is None:
        return None
    head = _decoded(url[begin.end() : begin.end() + HEAD])
    return read(head) or (read(_decoded(url[begin.end() :])) if head.startswith(_JPEG) else None)


def _decoded(text: str) -> bytes:
    """Return what base64 stands for, up to its last whole group; nothing where it is none."""
    try:
        return base64.b64decode(text[: len(text) & ~3] or text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def read(content: bytes) -> Header | None:
    """Return the header at the beginning of an image's bytes; None for what is none, or is cut off before it."""
    if content.startswith(_PNG) and content[12:16] == b"IHDR":
        return _header("png", _big(content[16:20]), _big(content[20:24]))
    if content.startswith(_GIFS):
        return _gif(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    return _jpeg(content) if content.startswith(_JPEG) else None


def _header(kind: str, width: int, height: int) -> Header | None:
    return Header(kind, width, height) if width and height else None


def _big(content: bytes) -> int:
    return int.from_bytes(content, "big")


def _little(content: bytes) -> int:
    return int.from_bytes(content, "little")


def _gif(content: bytes) -> Header | None:
    """Read the screen's size, and make it as large as its first picture where that one is larger."""
    width, height = _little(content[6:8]), _little(content[8:10])
    if len(content) < _GIF_HEAD:
        return None
    at = _GIF_HEAD + (3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0)
    while at + 1 < len(content) and content[at] == _EXTENSION:
        at += 2
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    if at + 9 > len(content) or content[at] != _PICTURE:
        return _header("gif", width, height)
    x, y, wide, high = (_little(content[at + step : at + step + 2]) for step in (1, 3, 5, 7))
    return _header("gif", max(width, x + wide), max(height, y + high))


def _webp(content: bytes) -> Header | None:
    kind = content[12:16]
    if len(content) < _WEBP_HEAD:
        return None
    if kind == b"VP8X":
        return _header("webp", _little(content[24:27]) + 1, _little(content[27:30]) + 1)
    if kind == b"VP8L" and content[20] == _LOSSLESS:
        bits = _little(content[21:25])
        return _header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        return _header("webp", _little(content[26:28]) & 0x3FFF, _little(content[28:30]) & 0x3FFF)
    return None


def _jpeg(content: bytes) -> Header | None:
    at = 2
    while at + 9 <= len(content) and content[at] == _MARKER:
        marker = content[at + 1]
        if marker == _MARKER or marker in _LONE:
            at += 1 if marker == _MARKER else 2
        elif marker in _SOF:
            return _header("jpeg", _big(content[at + 7 : at + 9]), _big(content[at + 5 : at + 7]))
        else:
            at += 2 + _big(content[at + 2 : at + 4])
    return None
