"""Bring the files of one revision into a folder: several ranges at a time, each resumed, every file hashed.

Runs in a child process. A retry that brought bytes costs nothing; only tries in a row without a byte count. A file
whose hash is wrong is fetched once more and then given up: wrong bytes are never given their name.

A file in the making is `<name>.part`, which several threads fill and a SIGKILL cannot spoil. Each byte is written at
its final offset; a record past the file's end counts the bytes of each segment and moves after them, so that a killed
fetch resumes. A power cut may lose bytes that the record counts: the hash finds that, and the file is fetched again.
Finishing cuts the record off and renames.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from state import files
from state.errors import Damaged, Internal, MlxqError, Offline
from tasks.system.child import Later
from tasks.weights.hub import REDIRECTS, Hub, unreachable, web_page
from tasks.weights.manifest import File, start_hash

if TYPE_CHECKING:
    from tasks.system.child import Report

SUFFIX = ".part"
SEGMENT = 32 << 20
"""Bytes that one request asks for: small enough that eight connections share one file."""
_COUNT = struct.Struct("<Q")
_MARK = b"mlxq" + _COUNT.pack(SEGMENT)
_READ = 1 << 20
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
    """The host failed in a way that another try may fix."""


class _Aborted(Exception):
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
        except _Aborted:
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
                raise _Aborted

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
                raise _Aborted
            raise _Flaky(refusal.reason)
        if isinstance(refusal, Offline):
            raise _Flaky(refusal.message)
        raise refusal

    def _write(self, response: httpx.Response, part: PartialFile, number: int, *, skip: int) -> None:
        """Write the body into the segment; `skip`: bytes before it, from a host that knows no ranges."""
        for piece in response.iter_raw():
            if self._stop.is_set():
                raise _Aborted
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
            self._fetch_again(part)
        part.finish()
        del self._open[part.file.name]

    def _fetch_again(self, part: PartialFile) -> None:
        self._count(-part.received)
        part.restart()
        for number in range(part.segments):
            self._segment(part, number)
        if not part.right():
            part.discard()
            name = part.file.name
            raise Damaged(
                f"{self._where(name)} sent wrong bytes for {name} of {self._repo} twice, or this disk changed them.",
                done="They were thrown away; nothing was installed.",
                hint=f"mlxq pull {self._repo}   (try again, or another mirror in HF_ENDPOINT)",
            )

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
        samples = deque([(time.monotonic(), self._received)])
        while not self._stop.is_set() and any(thread.is_alive() for thread in threads):
            next((thread for thread in threads if thread.is_alive()), threads[0]).join(_LOOK_S)
            samples.append((time.monotonic(), self._received))
            while samples[-1][0] - samples[0][0] > _RATE_WINDOW_S:
                samples.popleft()
            (start, before), (now, received) = samples[0], samples[-1]
            rate = max(0.0, (received - before) / max(now - start, 1e-3))
            now_at = {"file": self._current, "files": self._files(), "resumed": self._resumed}
            report({"phase": "fetching", "bytes": received, "total": total, "rate": round(rate)} | now_at)
            if shutil.disk_usage(self._folder).free < self._floor_bytes:
                self._fail(Later("the disk is almost full", _FULL_WAIT_S))

    def _files(self) -> list[tuple[str, int, int]]:
        """Return name, bytes that are here, and size of the files that are being fetched."""
        return [(part.file.name, part.received, part.file.size) for part in list(self._open.values())]


def _there(folder: Path, file: File) -> bool:
    """Return whether the file is in the folder: it got its name only when its hash was right."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


class PartialFile:
    """The bytes of one file so far. Close it by `finish` or `close`."""

    def __init__(self, folder: Path, file: File) -> None:
        self.file = file
        self.segments = -(-file.size // SEGMENT)
        self._target = folder / file.name
        self._path = folder / (file.name + SUFFIX)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._hashing = threading.Lock()
        self._begin_hash()
        self._done = self._recorded()
        if len(self._done) != self.segments:
            self.restart()

    def done(self, segment: int) -> int:
        """Return how many bytes of the segment are here."""
        return self._done[segment]

    def length(self, segment: int) -> int:
        """Return how many bytes the segment has when it is whole."""
        return min(SEGMENT, self.file.size - segment * SEGMENT)

    @property
    def received(self) -> int:
        """Bytes that are here."""
        return sum(self._done)

    @property
    def whole(self) -> bool:
        """Whether all bytes are here."""
        return self.received == self.file.size

    def write(self, segment: int, data: bytes) -> None:
        """Put the next bytes of a segment; one thread at a time per segment."""
        done = self._done[segment]
        os.pwrite(self._descriptor, data, segment * SEGMENT + done)
        os.pwrite(self._descriptor, _COUNT.pack(done + len(data)), self._record(segment))
        self._done[segment] = done + len(data)

    def restart(self) -> None:
        """Discard every byte."""
        os.ftruncate(self._descriptor, 0)
        files.preallocate(self._descriptor, self._record(self.segments))
        os.ftruncate(self._descriptor, self._record(self.segments))
        os.pwrite(self._descriptor, _MARK, self.file.size)
        self._done = [0] * self.segments
        self._begin_hash()

    def hash_on(self, *, wait: bool = False) -> None:
        """Hash what is contiguous from the start; unless `wait`, leave it to a thread that does so already."""
        if not self._hashing.acquire(blocking=wait):
            return
        try:
            end = self._frontier()
            while self._hashed < end:
                data = os.pread(self._descriptor, min(_READ, end - self._hashed), self._hashed)
                self._digest.update(data)
                self._hashed += len(data)
        finally:
            self._hashing.release()

    def right(self) -> bool:
        """Return whether the whole file has the hash it must have."""
        self.hash_on(wait=True)
        return self._digest.hexdigest() == self.file.digest

    def finish(self) -> None:
        """Rename the complete, verified file to its final name."""
        os.ftruncate(self._descriptor, self.file.size)
        files.sync(self._descriptor)
        self.close()
        self._path.replace(self._target)

    def close(self) -> None:
        """Leave it for another time."""
        os.close(self._descriptor)

    def discard(self) -> None:
        """Throw it away."""
        self.close()
        self._path.unlink()

    def _begin_hash(self) -> None:
        self._digest = start_hash(self.file.algorithm, self.file.size)
        self._hashed = 0

    def _frontier(self) -> int:
        """Return how many bytes from the start have no gap."""
        end = 0
        for segment in range(self.segments):
            end += self._done[segment]
            if self._done[segment] < self.length(segment):
                break
        return end

    def _record(self, segment: int) -> int:
        """Return where the count of a segment stands."""
        return self.file.size + len(_MARK) + segment * _COUNT.size

    def _recorded(self) -> list[int]:
        """Return how far an earlier fetch came in each segment; nothing when the file was not made by one."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, self._record(self.segments) - self.file.size, self.file.size)
        if size != self._record(self.segments) or not tail.startswith(_MARK):
            return []
        counts = [count for (count,) in _COUNT.iter_unpack(tail[len(_MARK) :])]
        return counts if all(count <= self.length(segment) for segment, count in enumerate(counts)) else []


def left(folder: Path, file: File) -> int:
    """Return the bytes of a file that a fetch which was broken off left behind."""
    if not (folder / (file.name + SUFFIX)).exists():
        return 0
    part = PartialFile(folder, file)
    try:
        return part.received
    finally:
        part.close()
