"""A small Hub that speaks the real one's protocol, and misbehaves as the first half of a repo's name says.

`python tests/hub/server.py ROOT FD` serves every folder of ROOT as `<mode>/<folder>`, revision COMMIT, on the listening
socket that it inherits as FD. Large files
redirect to another host name (127.0.0.1 to localhost), so that a token that leaks to the file host is seen.
The shapes follow huggingface_hub's own parser (utils/_http.py, hf_api.py, file_download.py of 1.33).
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncGenerator
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = {"main", COMMIT}
KNOWN_TOKENS = {"hf_known", "hf_access"}  # the second one has access to gated and private repos
LARGE = 100_000
BLOCK = 1 << 18
MODES = (
    *("ok", "gated", "private", "limit", "apilimit", "api500", "file500", "drop", "stall", "wrong", "short", "slow"),
    *("nocommit", "html", "traversal", "norange", "expiring", "nosizes", "code"),
)

settings: dict[str, Any] = {"drop_after": 5 << 20, "failures": 2, "retry_after": 1, "rate": 2 << 20, "limited": None}
settings["tasks"] = {}  # what the Hub says that a repo is for
log: list[dict[str, Any]] = []
counts: dict[str, int] = {}
root = Path()


@cache
def digests(path: Path, size: int) -> tuple[str, str]:
    """Give sha256 and git's sha1 of a file; `size` keeps a changed file from being mistaken for the old one."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            sha256.update(data)
            sha1.update(data)
    return sha256.hexdigest(), sha1.hexdigest()


def times(what: str) -> int:
    """Count how often something was asked."""
    counts[what] = counts.get(what, 0) + 1
    return counts[what]


def token(request: Request) -> str | None:
    return request.headers.get("authorization", "").removeprefix("Bearer ") or None


def problem(status: int, code: str | None = None, message: str = "", **headers: str) -> Response:
    named = {"x-error-code": code} if code else {}
    return JSONResponse({"error": message}, status, headers={**named, "x-error-message": message, **headers})


def refuse(request: Request, mode: str, name: str, revision: str, *, api: bool) -> Response | None:
    """Give the Hub's answer to those who may not see the repo, or asked for what is not there."""
    given = token(request)
    if given is not None and given not in KNOWN_TOKENS:
        return problem(401, None, "Invalid credentials in Authorization header")
    if mode not in MODES or not (root / name).is_dir() or (mode == "private" and given != "hf_access"):
        return problem(401 if given is None else 404, "RepoNotFound", "Repository not found")
    if mode == "gated" and not api and given != "hf_access":
        return problem(401 if given is None else 403, "GatedRepo", "Access to this model is restricted")
    if revision not in REVISIONS:
        return problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if mode == "html":
        return HTMLResponse("<html>Welcome to the airport. Please log in.</html>")
    return None


def entry(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    sha256, sha1 = digests(path, size)
    found = {"rfilename": path.name, "size": size, "blobId": sha1}
    if size >= LARGE:
        found["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
    return found


async def info(request: Request) -> Response:
    mode, name = request.path_params["mode"], request.path_params["name"]
    note(request, "api")
    refused = refuse(request, mode, name, request.path_params.get("revision", "main"), api=True)
    if refused:
        return refused
    if mode == "api500" and times("api500") <= settings["failures"]:
        return problem(500)
    if mode == "apilimit" and times("apilimit") <= settings["failures"]:
        named = settings["limited"] or {"retry-after": str(settings["retry_after"])}
        return problem(429, None, "Too many requests", **named)
    siblings = [entry(path) for path in sorted((root / name).iterdir())]
    if mode == "traversal":
        siblings.append({"rfilename": "../../escaped.json", "size": 2, "blobId": "0" * 40})
    if "blobs" not in request.query_params or mode == "nosizes":
        siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
    return JSONResponse(
        {
            "id": f"{mode}/{name}",
            "modelId": f"{mode}/{name}",
            "sha": COMMIT,
            "private": mode == "private",
            "gated": "manual" if mode == "gated" else False,
            "cardData": {"license": "apache-2.0"},
            "tags": [],
            **({"pipeline_tag": settings["tasks"][name]} if name in settings["tasks"] else {}),
            "siblings": siblings,
        }
    )


async def tree(request: Request) -> Response:
    mode, name = request.path_params["mode"], request.path_params["name"]
    note(request, "api")
    refused = refuse(request, mode, name, request.path_params["revision"], api=True)
    if refused:
        return refused
    entries: list[dict[str, Any]] = []
    for path in sorted((root / name).iterdir()):
        found = entry(path)
        listed = {"type": "file", "path": path.name, "size": found["size"], "oid": found["blobId"]}
        if "lfs" in found:
            listed["lfs"] = {"oid": found["lfs"]["sha256"], "size": found["size"], "pointerSize": 130}
        entries.append(listed)
    return JSONResponse(entries)


async def search(request: Request) -> Response:
    wanted, author = request.query_params.get("search", ""), request.query_params.get("author")
    repos = [f"ok/{path.name}" for path in sorted(root.iterdir())]
    return JSONResponse([{"id": repo} for repo in repos if wanted in repo and (not author or author == "ok")])


async def resolve(request: Request) -> Response:
    mode, name, file = (request.path_params[key] for key in ("mode", "name", "file"))
    note(request, "resolve")
    refused = refuse(request, mode, name, request.path_params["revision"], api=False)
    if refused:
        return refused
    path = root / name / file
    if not path.is_file():
        return problem(404, "EntryNotFound", "Entry not found")
    if mode == "limit" and file.endswith(".safetensors") and times("limit") <= settings["failures"]:
        return problem(429, None, "Too many requests", **{"retry-after": str(settings["retry_after"])})
    size = path.stat().st_size
    sha256, sha1 = digests(path, size)
    headers = {} if mode == "nocommit" else {"x-repo-commit": COMMIT}
    if size < LARGE:
        return body(request, path, headers | {"etag": f'"{sha1}"'}, mode)
    other = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}[request.url.hostname or "localhost"]
    address = f"http://{other}:{request.url.port}/cdn/{mode}/{name}/{file}"
    linked = {"x-linked-etag": f'"{sha256}"', "x-linked-size": str(size)}
    return RedirectResponse(address, 302, headers | linked)


async def cdn(request: Request) -> Response:
    mode, name, file = (request.path_params[key] for key in ("mode", "name", "file"))
    note(request, "cdn")
    if mode == "file500" and times("file500") <= settings["failures"]:
        return problem(500)
    if mode == "expiring" and times("expiring") % 3 == 0:
        return problem(403, None, "Request has expired")
    return body(request, root / name / file, {"etag": f'"{file}"'}, mode)


def body(request: Request, path: Path, headers: dict[str, str], mode: str) -> Response:
    size = path.stat().st_size
    start, end, status = 0, size, 200
    asked = request.headers.get("range", "")
    if asked.startswith("bytes=") and mode != "norange":
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end, status = int(first), min(size, int(last) + 1 if last else size), 206
        headers |= {"content-range": f"bytes {start}-{end - 1}/{size}"}
        if start >= size:
            return problem(416)
    headers |= {"content-length": str(end - start), "accept-ranges": "bytes"}
    if request.method == "HEAD":
        return Response(headers=headers)
    large = size >= LARGE
    pieces = send(path, start, end, mode if large else "ok")
    if large and mode == "short":
        headers["content-length"] = str(max(1, (end - start) // 2))
        pieces = send(path, start, start + max(1, (end - start) // 2), mode)
    return StreamingResponse(pieces, status, headers, media_type="application/octet-stream")


async def send(path: Path, start: int, end: int, mode: str) -> AsyncGenerator[bytes]:
    """Yield the bytes, as well as the mode lets them through."""
    sent = 0
    stalls = mode == "stall" and times(f"stall {path.name}") == 1
    with path.open("rb") as file:
        file.seek(start)
        while start + sent < end:
            data = file.read(min(BLOCK, end - start - sent))
            if mode == "drop" and sent + len(data) > settings["drop_after"]:
                raise ConnectionResetError
            if stalls and sent >= BLOCK:
                await asyncio.sleep(3600)
            if mode == "slow":
                await asyncio.sleep(len(data) / settings["rate"])
            yield bytes(len(data)) if mode == "wrong" else data
            sent += len(data)
            record(path.name, start, sent)


def note(request: Request, what: str) -> None:
    heard = {"what": what, "method": request.method, "path": request.url.path, "host": request.url.hostname}
    log.append(heard | {"token": token(request), "range": request.headers.get("range"), "sent": 0})


def record(name: str, start: int, sent: int) -> None:
    """Write down how many bytes of a request went out, so that bytes fetched twice can be counted."""
    for line in reversed(log):
        asked = (line["range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0]
        if line["path"].endswith("/" + name) and int(asked) == start and line["what"] != "api":
            line["sent"] = sent
            return


async def control(request: Request) -> Response:
    """GET gives the log of requests; POST changes settings and starts the counts and the log anew."""
    if request.method == "POST":
        settings.update(await request.json())
        log.clear()
        counts.clear()
    return JSONResponse(log)


app = Starlette(
    routes=[
        Route("/_control", control, methods=["GET", "POST"]),
        Route("/api/models", search),
        Route("/api/models/{mode}/{name}", info),
        Route("/api/models/{mode}/{name}/revision/{revision:path}", info),
        Route("/api/models/{mode}/{name}/tree/{revision}", tree),
        Route("/cdn/{mode}/{name}/{file}", cdn, methods=["GET", "HEAD"]),
        Route("/{mode}/{name}/resolve/{revision}/{file}", resolve, methods=["GET", "HEAD"]),
    ]
)

if __name__ == "__main__":
    root = Path(sys.argv[1])
    uvicorn.run(app, fd=int(sys.argv[2]), log_level="error")
