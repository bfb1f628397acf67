"""A package index on loopback that lies on demand, and the wheels that it serves."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 4096


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str | bytes], *, needs: str = "") -> Path:
    """Write a wheel with these files, path in site-packages -> content, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    package = name.replace("-", "_")
    about = f"{package}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    content: dict[str, bytes] = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    content[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}".encode()
    content[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return zipped(folder / f"{package}-{version}-py3-none-any.whl", content, about)


def repacked(original: Path, folder: Path, version: str, changed: Mapping[str, str]) -> Path:
    """Write a real wheel again as another version, with some files changed, path -> what is appended to it."""
    folder.mkdir(parents=True, exist_ok=True)
    name, old, rest = original.name.split("-", 2)
    content: dict[str, bytes] = {}
    with zipfile.ZipFile(original) as archive:
        for path in archive.namelist():
            content[path.replace(f"{name}-{old}.dist-info", f"{name}-{version}.dist-info")] = archive.read(path)
    about = f"{name}-{version}.dist-info"
    content.pop(f"{about}/RECORD")
    metadata = content[f"{about}/METADATA"].decode()
    content[f"{about}/METADATA"] = metadata.replace(f"\nVersion: {old}\n", f"\nVersion: {version}\n").encode()
    for path, text in changed.items():
        content[path] += text.encode()
    return zipped(folder / f"{name}-{version}-{rest}", content, about)


def zipped(target: Path, content: Mapping[str, bytes], about: str) -> Path:
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in content.items())
    with zipfile.ZipFile(target, "w") as archive:
        for path, data in content.items():
            archive.writestr(zipfile.ZipInfo(path), data)  # without a time: the same content has the same hash
        archive.writestr(zipfile.ZipInfo(f"{about}/RECORD"), f"{record}{about}/RECORD,,\n")
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def locked(*wheels: Path) -> str:
    """Return the lock of these wheels."""
    rows = [
        f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in wheels
        for name, version in [path.name.split("-")[:2]]
    ]
    return "".join(rows)


@dataclass
class PackageIndex:
    """What is served, and how it lies."""

    wheels: dict[str, bytes] = field(default_factory=dict)
    """File name -> bytes."""
    fault: str = ""
    """"", missing, error, cut, slow, hang or refused (the page of a package is 403)."""
    hashes: dict[str, str] = field(default_factory=dict)
    """File name -> the sha256 that its page says; a file that is not in it is said without one."""
    yanked: dict[str, str] = field(default_factory=dict)
    """File name -> why it was yanked."""
    port: int = 0
    host: str = "127.0.0.1"
    served: list[str] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    """Set when a wheel is asked for."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/simple"

    def add(self, *wheels: Path) -> None:
        self.wheels |= {path.name: path.read_bytes() for path in wheels}

    def add_hashed(self, *wheels: Path) -> None:
        """Add wheels, and say their hashes, as PyPI does."""
        self.add(*wheels)
        self.hashes |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels}

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables that have uv ask this index alone, with a cache of its own."""
        return {"UV_DEFAULT_INDEX": self.url, "UV_CACHE_DIR": str(cache)}


@contextmanager
def running(index: PackageIndex) -> Generator[PackageIndex]:
    """Serve the index while the block runs."""
    handler = type("IndexHandler", (Handler,), {"index": index})
    with ThreadingHTTPServer((index.host, index.port), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        index.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield index
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    index: PackageIndex

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Say the size of a file; uv reads its metadata from the file then, as there are no ranges."""
        data = self.index.wheels.get(self.path.rpartition("/")[2])
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        _, kind, name, *_ = [*self.path.split("/"), "", ""]
        if kind == "simple":
            self._page(name)
        else:
            self._file(name)

    def _page(self, name: str) -> None:
        files = [file for file in self.index.wheels if file.split("-")[0].replace("_", "-") == name]
        if self.index.fault == "refused" or not files:
            return self._end(403 if self.index.fault == "refused" else 404, b"")
        links = "".join(map(self._link, files))
        return self._end(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

    def _link(self, file: str) -> str:
        """Return the line of a file on its package's page (PEP 503, 592)."""
        digest, reason = self.index.hashes.get(file), self.index.yanked.get(file)
        yanked = f' data-yanked="{reason}"' if reason is not None else ""
        return f'<a href="/files/{file}{f"#sha256={digest}" if digest else ""}"{yanked}>{file}</a>'

    def _file(self, name: str) -> None:
        self.index.served.append(name)
        self.index.arrived.set()
        data = self.index.wheels[name]
        if self.index.fault in {"missing", "error"}:
            return self._end(404 if self.index.fault == "missing" else 500, b"")
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return self._body(data)

    def _body(self, data: bytes) -> None:
        if self.index.fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif self.index.fault == "hang":
            self.wfile.write(data[:PIECE])
            self.wfile.flush()
            time.sleep(3600)
        elif self.index.fault == "slow":
            for start in range(0, len(data), PIECE):
                self.wfile.write(data[start : start + PIECE])
                time.sleep(0.05)
        else:
            self.wfile.write(data)

    def _end(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
