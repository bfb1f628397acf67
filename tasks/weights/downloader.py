"""Bring the files of one revision into a folder: several ranges at a time, each resumed, every file hashed.

Runs in a child process. A retry that brought bytes costs nothing; only tries in a row without a byte count. A file
whose hash is wrong is fetched once more and then given up: wrong bytes are never given their name.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from state.errors import Damaged, Internal, MlxqError, Offline
from tasks.system.child import Later
from tasks.weights.hub import REDIRECTS, Hub, unreachable, web_page
from tasks.weights.manifest import File
from tasks.weights.partial_file import SEGMENT, PartialFile, left

if TYPE_CHECKING:
    from tasks.system.child_protocol import Report

CONNECTIONS = 8
TRIES = 5
"""Tries in a row that brought no byte before the host counts as down."""
_SHORT_PAUSE_S = 5.0
"""A pause the host asks for is waited out here up to this long; beyond it the job is snoozed."""
_FULL_WAIT_S = 60.0
_RATE_WINDOW_S = 5.0
_LOOK_S = 0.25
_MOST_REDIRECTS = 5


class _Flaky(Exception):
    """The host failed in a way that another try can mend."""


class _Stopped(Exception):
    """Another thread failed; this one ends too."""


class Download:
    """One fetch of some files of a repo's revision."""

    def __init__(self, hub: Hub, repo: str, revision: str, folder: Path, *, floor_bytes: int) -> None:
        """`floor_bytes`: the free space below which the fetch pauses."""
        self._hub = hub
        self._repo = repo
        self._revision = revision
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._problem: Exception | None = None
        self._located: dict[str, httpx.URL] = {}
        self._left: dict[str, int] = {}
        self._received = 0
        self._resumed = 0
        self._open: dict[str, PartialFile] = {}
        self._current = ""

    def fetch(self, files: Sequence[File], report: Report) -> None:
        """Fetch what is not in the folder yet. Raises Offline, Damaged, Gated, NotFound, Later."""
        missing, total = self._missing(files), sum(file.size for file in files)
        self._received = total - sum(file.size for file in missing)
        self._resumed = self._received + sum(left(self._folder, file) for file in missing)
        self._watch(self._begin(missing), total, report)
        if self._problem:
            raise self._problem
        if lost := self._missing(missing):
            names = ", ".join(file.name for file in lost)
            raise Internal(f"The fetch ended without {names}.", hint="mlxq logs worker")

    def _missing(self, files: Sequence[File]) -> list[File]:
        return [file for file in files if not _there(self._folder, file)]

    def _begin(self, missing: Sequence[File]) -> list[threading.Thread]:
        """Start the threads, all of which take from the same segments."""
        segments = self._segments(missing)
        threads = [threading.Thread(target=self._work, args=(segments,), daemon=True) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        return threads

    def _segments(self, files: Iterable[File]) -> Generator[tuple[PartialFile, int | None]]:
        """Yield what is left to fetch, opening each file when its turn comes; None for a file that has all bytes."""
        for file in files:
            part = PartialFile(self._folder, file)
            self._count(part.received)
            self._open[file.name] = part
            open_segments = [number for number in range(part.segments) if part.done(number) < part.length(number)]
            self._left[file.name] = max(1, len(open_segments))
            for number in open_segments or [None]:
                yield part, number

    def _work(self, segments: Generator[tuple[PartialFile, int | None]]) -> None:
        """Fetch segments until there are none, in one of the threads."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    part, number = next(segments, (None, None))
                if part is None:
                    return
                if number is not None:
                    self._segment(part, number)
                    part.hash_on()
                if self._is_last(part):
                    self._finish(part)
        except _Stopped:
            return
        except (MlxqError, Later) as problem:
            self._fail(problem)
        except OSError as problem:
            full = problem.errno in {errno.ENOSPC, errno.EDQUOT}
            self._fail(Later("the disk is full", _FULL_WAIT_S) if full else MlxqError(f"Cannot write: {problem}."))

    def _segment(self, part: PartialFile, number: int) -> None:
        """Fetch one segment, trying again as long as tries bring bytes."""
        fruitless = 0
        while (before := part.done(number)) < part.length(number):
            try:
                self._stream(part, number)
                problem: Exception = _Flaky("it stopped in the middle")
            except (httpx.TransportError, _Flaky) as met:
                problem = met
            fruitless = 0 if part.done(number) > before else fruitless + 1
            if fruitless >= TRIES:
                raise unreachable(self._where(part.file.name), problem) from problem
            if fruitless and self._stop.wait(0.25 * 2**fruitless):
                raise _Stopped

    def _stream(self, part: PartialFile, number: int) -> None:
        """Ask once for the rest of a segment and write what comes."""
        start = number * SEGMENT + part.done(number)
        wanted = {"range": f"bytes={start}-{number * SEGMENT + part.length(number) - 1}"}
        url = self._located.get(part.file.name) or self._hub.url(self._repo, self._revision, part.file.name)
        for _ in range(_MOST_REDIRECTS):
            with self._hub.client.stream("GET", url, headers=wanted | self._hub.headers(url)) as response:
                if response.status_code not in REDIRECTS:
                    self._admit(response, part.file.name)
                    return self._write(
                        response, part, number, skip=start if response.status_code == HTTPStatus.OK else 0
                    )
                url = url.join(response.headers["location"])
        raise Offline(f"{url.host} redirects in a circle.", hint="Check HF_ENDPOINT.")

    def _admit(self, response: httpx.Response, name: str) -> None:
        """Raise unless the answer brings the file; remember where it was found."""
        if response.is_success:
            if response.headers.get("content-type", "").startswith("text/html"):
                raise web_page(response.url.host)
            self._located[name] = response.url
            return
        self._located.pop(name, None)
        if response.is_client_error and not self._hub.owns(response.url):
            raise _Flaky(f"the link to {name} ran out ({response.status_code})")
        refusal = self._hub.refusal(response, self._repo, self._revision)
        if isinstance(refusal, Later) and refusal.after_s <= _SHORT_PAUSE_S:
            if self._stop.wait(refusal.after_s):
                raise _Stopped
            raise _Flaky(refusal.reason)
        if isinstance(refusal, Offline):
            raise _Flaky(refusal.message)
        raise refusal

    def _write(self, response: httpx.Response, part: PartialFile, number: int, *, skip: int) -> None:
        """Write the body into the segment; `skip`: bytes before it, from a host that knows no ranges."""
        for piece in response.iter_raw():
            if self._stop.is_set():
                raise _Stopped
            data = piece[skip:][: part.length(number) - part.done(number)]
            skip = max(0, skip - len(piece))
            if data:
                part.write(number, data)
                self._current = part.file.name
                self._count(len(data))
            elif not skip:
                return

    def _finish(self, part: PartialFile) -> None:
        """Name the file when its hash is right; else fetch it once more."""
        if not part.right():
            self._count(-part.received)
            part.restart()
            for number in range(part.segments):
                self._segment(part, number)
            if not part.right():
                part.discard()
                raise Damaged(
                    f"{self._where(part.file.name)} sent wrong bytes for {part.file.name} of {self._repo}, twice.",
                    done="They were thrown away; nothing was installed.",
                    hint=f"mlxq pull {self._repo}   (try again, or another mirror in HF_ENDPOINT)",
                )
        part.finish()
        del self._open[part.file.name]

    def _is_last(self, part: PartialFile) -> bool:
        with self._lock:
            self._left[part.file.name] -= 1
            return self._left[part.file.name] == 0

    def _count(self, received: int) -> None:
        with self._counting:
            self._received += received

    def _fail(self, problem: Exception) -> None:
        with self._lock:
            self._problem = self._problem or problem
        self._stop.set()

    def _where(self, name: str) -> str:
        return self._located[name].host if name in self._located else self._hub.endpoint

    def _watch(self, threads: Sequence[threading.Thread], total: int, report: Report) -> None:
        """Report until the threads end or one fails; pause the fetch when the disk gets too full."""
        seen = deque([(time.monotonic(), self._received)])
        while not self._stop.is_set() and any(thread.is_alive() for thread in threads):
            next((thread for thread in threads if thread.is_alive()), threads[0]).join(_LOOK_S)
            seen.append((time.monotonic(), self._received))
            while seen[-1][0] - seen[0][0] > _RATE_WINDOW_S:
                seen.popleft()
            (then, before), (now, received) = seen[0], seen[-1]
            rate = max(0.0, (received - before) / max(now - then, 1e-3))
            now_at = {"file": self._current, "files": self._files(), "resumed": self._resumed}
            report({"phase": "fetching", "bytes": received, "total": total, "rate": round(rate)} | now_at)
            if shutil.disk_usage(self._folder).free < self._floor_bytes:
                self._fail(Later("the disk is almost full", _FULL_WAIT_S))

    def _files(self) -> list[tuple[str, int, int]]:
        """Give name, bytes that are here, and size of the files that are being fetched."""
        return [(part.file.name, part.received, part.file.size) for part in list(self._open.values())]


def _there(folder: Path, file: File) -> bool:
    """Tell whether the file is in the folder: it got its name only when its hash was right."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size
