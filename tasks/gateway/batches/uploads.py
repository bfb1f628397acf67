"""Reads the upload of one file, multipart/form-data (RFC 7578), from the wire to the disk in small pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from state.batches.stored_files import Upload
from tasks.gateway.admission.body import Gone
from tasks.gateway.errors import Refusal, invalid

SILENCE_S = 30.0
"""Between two pieces of an upload."""
LONGEST_FIELD = 1024
"""Bytes of a field that is no file."""
FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class FormUpload:
    """The parts of an upload as the parser meets them: small fields are kept, the file goes to `file`."""

    def __init__(self, file: Upload, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """Of the part `file`; None until it came."""
        self.whole = False
        """Whether the form's closing boundary came."""
        self._file = file
        self._part = ""
        self._text = b""
        self._header = b""
        self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._end_header,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def write(self, piece: bytes) -> None:
        """Take the next bytes. Raises OSError, UsageProblem (the file is too large), FormParserError."""
        self._parser.write(piece)

    def _begin(self) -> None:
        self._part, self._text = "", b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._part = options.get(b"name", b"").decode("utf-8", "replace")
            if self._part == "file":
                if self.filename is not None:
                    raise FormParserError("It has two parts named file.")
                self.filename = options.get(b"filename", b"").decode("utf-8", "replace") or "upload.jsonl"
        self._header = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._file.write(data[start:end])
        elif len(self._text) + end - start <= LONGEST_FIELD:
            self._text += data[start:end]

    def _end(self) -> None:
        if self._part in FIELDS:
            self.fields[self._part] = self._text.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.whole = True


async def read(receive: Receive, headers: Iterable[tuple[bytes, bytes]], file: Upload) -> FormUpload | Refusal:
    """Return the form, its file written to `file`. Raises Gone, OSError, UsageProblem (the file is too large)."""
    kind, options = parse_options_header(dict(headers).get(b"content-type", b""))
    boundary: Any = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        return invalid("A file is uploaded as multipart/form-data.", code="invalid_content_type")
    try:
        form = FormUpload(file, boundary)
        await _feed(receive, form)
    except FormParserError as problem:
        return invalid(f"The form cannot be read: {problem}", code="invalid_form")
    except TimeoutError:
        return Refusal(408, f"Nothing came of the upload for {SILENCE_S:.0f} s.", "request_timeout")
    if not form.whole:
        return invalid("The form ends in the middle.", code="invalid_form")
    return form


async def _feed(receive: Receive, form: FormUpload) -> None:
    more = True
    while more:
        async with asyncio.timeout(SILENCE_S):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        form.write(message.get("body", b""))
        more = message.get("more_body", False)
