"""Ask the Hub, or a mirror of it, what a repo holds. Runs in a child process: httpx is heavy.

One request gives the commit, the gate, the licence, and each file's size and hash. huggingface_hub would make the
same request, but retries neither a 429 nor a 5xx here and reports both as "not found locally" (1.33.0), so
only its settings and its token are used.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from state.classes import dataclass
from state.errors import Damaged, Gated, MlxqError, NotFound, Offline
from tasks.system import file_copy
from tasks.system.child import Later
from tasks.weights import repo_files
from tasks.weights.formats import safetensors
from tasks.weights.manifest import File, hash_file, start_hash

if TYPE_CHECKING:
    import httpx

    from tasks.weights.formats.safetensors import Header

CONNECT_S = 10.0
_ENDPOINT = "https://huggingface.co"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_UNNAMED_WAIT_S = 30.0
_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class DownloadPlan:
    """What a pull would fetch, known before its first byte."""

    repo: str
    revision: str
    """The commit."""
    files: tuple[File, ...]
    gated: bool
    licence: str | None
    notes: tuple[str, ...] = ()
    """What the user should know, such as a token that was refused."""
    task: str = ""
    """What the Hub says the model is for, such as text-generation; empty where it does not say."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Hub:
    """One endpoint, with the user's token. The token goes to the endpoint's own host and no other.

    `client`: what the askers for many repos share; without it this one connects by itself.
    """

    def __init__(self, client: httpx.Client | None = None) -> None:
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise Offline("HF_HUB_OFFLINE is set, so nothing is fetched from the Hub.", hint="unset HF_HUB_OFFLINE")
        self.endpoint = constants.ENDPOINT.rstrip("/")
        self.token = get_token()
        self.refused = False
        """Whether the endpoint does not know the token; it is not sent again."""
        self.notes: list[str] = []
        self.client = client or connect()

    def plan(self, repo: str, revision: str, *, code: bool = False) -> DownloadPlan:
        """Return what a pull of the repo would fetch. Raises NotFound, Gated, Offline, Damaged, Later."""
        info = self._info(repo, revision)
        files = _files(info["siblings"])
        if any(file is None for file in files.values()):
            files = _files(self._tree(repo, info["sha"]))
        repo_files.check_loadable(repo, list(files))
        if info.get("gated") and not self.token:
            raise self._gated(repo)
        chosen = [files[name] for name in repo_files.choose(files, code=code)]
        whole = tuple(file for file in chosen if file is not None)
        if len(whole) < len(chosen):
            raise Damaged(f"{self.endpoint} gives no hashes for the files of {repo}.", done="Nothing was fetched.")
        task = info.get("pipeline_tag")
        return DownloadPlan(
            repo,
            info["sha"],
            whole,
            bool(info.get("gated")),
            _licence(info),
            tuple(self.notes),
            task if isinstance(task, str) else "",
        )

    def url(self, repo: str, revision: str, name: str) -> httpx.URL:
        """Return the address of one file."""
        import httpx

        return httpx.URL(f"{self.endpoint}/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}")

    def header(self, repo: str, revision: str, file: File) -> Header:
        """Return the header of a safetensors file without its tensors. Raises Damaged, and what `refusal` returns."""
        name, first = f"{repo}/{file.name}", safetensors.LENGTH_BYTES
        header_bytes = safetensors.length(self._bytes(repo, revision, file.name, 0, first), file.size, name)
        return safetensors.parse(self._bytes(repo, revision, file.name, first, first + header_bytes), file.size, name)

    def small_file(self, repo: str, revision: str, file: File, most_bytes: int) -> bytes:
        """Return a small file whole. Raises Damaged for one that is longer or another, and what `refusal` returns."""
        if file.size > most_bytes:
            raise Damaged(f"{repo}/{file.name} has {file.size:,} bytes: it is no description.")
        content = self._bytes(repo, revision, file.name, 0, file.size) if file.size else b""
        digest = start_hash(file.algorithm, file.size)
        digest.update(content)
        if digest.hexdigest() != file.digest:
            raise Damaged(f"{repo}/{file.name} is not as the Hub lists it.", done="Nothing was fetched.")
        return content

    def _bytes(self, repo: str, revision: str, name: str, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to before `end`; a host that knows no ranges is cut off there."""
        import httpx

        url = self.url(repo, revision, name)
        try:
            for _ in range(_MOST_REDIRECTS):
                wanted = {"range": f"bytes={start}-{end - 1}"} | self.headers(url)
                with self.client.stream("GET", url, headers=wanted) as response:
                    if response.status_code not in REDIRECTS:
                        if not response.is_success:
                            raise self.refusal(response, repo, revision)
                        return _first(response, end)[start if response.status_code == HTTPStatus.OK else 0 :]
                    url = url.join(response.headers["location"])
        except httpx.TransportError as problem:
            raise unreachable(self.endpoint, problem) from problem
        raise Offline(f"{self.endpoint} redirects in a circle.", hint="Check HF_ENDPOINT.")

    def owns(self, url: httpx.URL) -> bool:
        """Return whether `url` lies on the endpoint's own host."""
        import httpx

        own = httpx.URL(self.endpoint)
        return (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port)

    def headers(self, url: httpx.URL) -> dict[str, str]:
        """Return the headers for a request to `url`: the token only where it belongs."""
        return {"authorization": f"Bearer {self.token}"} if self.token and self.owns(url) else {}

    def refusal(self, response: httpx.Response, repo: str, revision: str) -> MlxqError | Later:
        """Say why the Hub answered with an error."""
        code = response.headers.get("x-error-code", "")
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS or "retry-after" in response.headers:
            return Later(f"{response.url.host} asked for a pause", _pause_s(response))
        if code == "GatedRepo" or (response.status_code == HTTPStatus.FORBIDDEN and code != "RepoNotFound"):
            return self._gated(repo)
        if code == "RevisionNotFound":
            return NotFound(f"{repo} has no revision {revision!r}.", hint=f"{self.endpoint}/{repo}/refs lists them.")
        if code == "EntryNotFound":
            return Damaged(f"{repo} lists a file that it does not have: {response.url.path}.", hint="Try again later.")
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND) or code == "RepoNotFound":
            return self._missing(repo)
        return Offline(f"{response.url.host} answered {response.status_code} for {repo}.", hint="Try again later.")

    def _info(self, repo: str, revision: str) -> dict[str, Any]:
        address = f"/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        response = self._get(address)
        if response.status_code == HTTPStatus.UNAUTHORIZED and self.token and "x-error-code" not in response.headers:
            self.refused, self.token = True, None
            response = self._get(address)
            if response.is_success:
                self.notes.append(f"The Hub refused your token; this repo was read without. Run: {_login()}")
        document = self._json(response, repo, revision)
        if not isinstance(document, dict) or "sha" not in document or "siblings" not in document:
            raise Offline(f"{self.endpoint} does not answer like a Hub.", hint="Check HF_ENDPOINT.")
        return cast("dict[str, Any]", document)

    def _tree(self, repo: str, revision: str) -> list[dict[str, Any]]:
        entries = self._json(self._get(f"/api/models/{repo}/tree/{revision}?recursive=true"), repo, revision)
        return [{**entry, "rfilename": entry["path"]} for entry in entries if entry.get("type") == "file"]

    def _get(self, address: str) -> httpx.Response:
        """GET one page of the API, following the redirects of renamed repos. Raises Offline."""
        import httpx

        url = httpx.URL(self.endpoint + address)
        try:
            for _ in range(_MOST_REDIRECTS):
                response = self.client.get(url, headers=self.headers(url))
                if response.status_code not in REDIRECTS:
                    return response
                url = url.join(response.headers["location"])
        except httpx.TransportError as problem:
            raise unreachable(self.endpoint, problem) from problem
        raise Offline(f"{self.endpoint} redirects in a circle.", hint="Check HF_ENDPOINT.")

    def _json(self, response: httpx.Response, repo: str, revision: str) -> Any:
        if not response.is_success:
            raise self.refusal(response, repo, revision)
        try:
            return response.json()
        except ValueError as problem:
            raise web_page(self.endpoint) from problem

    def _missing(self, repo: str) -> NotFound:
        near = self._near(repo)
        hint = f"mlxq pull {near[0]}" if near else f"{_login()}, if the repo is private."
        also = f" Nearest: {', '.join(near)}." if near else ""
        unseen = "or your token may not see it" if self.token else "or is private"
        unseen += "; the Hub refused your token" if self.refused else ""
        return NotFound(f"{repo} does not exist on {self.endpoint}, {unseen}.{also}", hint=hint)

    def _gated(self, repo: str) -> Gated:
        """Say what opens a gated repo: a valid token, the license, or the publisher's consent."""
        page = f"{self.endpoint}/{repo}"
        if self.refused:
            return Gated(f"{repo} is gated, and the Hub refused your token: it is not a valid one.", hint=_login())
        if self.token:
            return Gated(f"{repo} is gated and your token has no access yet.", hint=f"Ask for it at {page}")
        return Gated(f"{repo} is gated: you must accept its license.", hint=f"Accept it at {page}, then: hf auth login")

    def _near(self, repo: str) -> list[str]:
        """Return up to three repos whose names look alike; none when the search does not answer."""
        owner, name = repo.split("/")
        names: list[str] = []
        for query in (f"search={quote(name)}", f"author={quote(owner)}"):
            try:
                response = self._get(f"/api/models?{query}&limit=100")
                names += [entry["id"] for entry in response.json()] if response.is_success else []
            except (Offline, ValueError, TypeError, KeyError):
                continue
        return difflib.get_close_matches(repo, sorted(set(names)), n=3, cutoff=0.6)


def _first(response: httpx.Response, most: int) -> bytes:
    """Return at most the first `most` bytes of a body."""
    data = b""
    for piece in response.iter_raw():
        data += piece
        if len(data) >= most:
            break
    return data[:most]


def connect() -> httpx.Client:
    """Return what talks to the Hub; threads may share it."""
    import httpx
    from huggingface_hub import constants

    return httpx.Client(
        timeout=httpx.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT, connect=CONNECT_S, pool=None),
        limits=httpx.Limits(max_connections=16),
        headers={"user-agent": "mlxq", "accept-encoding": "identity"},
    )


def unreachable(endpoint: str, problem: Exception) -> Offline:
    """Say that the endpoint did not answer; a certificate that is not valid yet points to the clock."""
    if "certificate" in str(problem).lower():
        return Offline(
            f"{endpoint} has a certificate that cannot be verified: {problem}.",
            hint="Check this machine's date, and SSL_CERT_FILE behind a company's proxy.",
        )
    return Offline(f"{endpoint} does not answer: {problem}.", hint="Check the network, HF_ENDPOINT and the proxy.")


def web_page(endpoint: str) -> Offline:
    """Say that a page for people came instead of data."""
    return Offline(
        f"{endpoint} answered with a web page: a login page of this network, or no Hub at all.",
        hint="Open a browser once on this network, or check HF_ENDPOINT.",
    )


def _login() -> str:
    """Return how to replace the token: one in the environment goes before the one that `hf auth login` keeps."""
    return "unset HF_TOKEN, or correct it" if os.environ.get("HF_TOKEN") else "hf auth login"


def _pause_s(response: httpx.Response) -> float:
    """Return the seconds that a host asks to be left alone, an hour at most.

    By Retry-After, in seconds or as a date, or by `t` of RateLimit: seconds to the next window
    (draft-ietf-httpapi-ratelimit-headers-10, as the Hub sends it: `"api";r=0;t=55`).
    """
    header = response.headers.get("retry-after", "")
    window = re.search(r";\s*t=(\d+)", response.headers.get("ratelimit", ""))
    pauses = [float(header)] if header.isdecimal() else [*_until(header), *([float(window[1])] if window else [])]
    return min(max(pauses, default=_UNNAMED_WAIT_S), _LONGEST_WAIT_S)


def _until(date: str) -> list[float]:
    """Return the seconds until a date as HTTP writes it; nothing for what is none."""
    from email.utils import parsedate_to_datetime

    try:
        return [max(0.0, parsedate_to_datetime(date).timestamp() - time.time())]
    except ValueError:
        return []


def _files(entries: Sequence[Mapping[str, Any]]) -> dict[str, File | None]:
    """Map each name of a listing to its file; to None when size or hash are not told."""
    return {entry["rfilename"]: _file(entry) for entry in entries}


def _file(entry: Mapping[str, Any]) -> File | None:
    large: Mapping[str, Any] = entry.get("lfs") or {}
    size: int | None = large.get("size", entry.get("size"))
    sha256: str | None = large.get("sha256") or large.get("oid")
    sha1: str | None = entry.get("blobId") or entry.get("oid")
    if size is None or not (sha256 or sha1):
        return None
    return File(entry["rfilename"], size, "sha256" if sha256 else "git-sha1", sha256 or sha1 or "")


def _licence(info: Mapping[str, Any]) -> str | None:
    card: Mapping[str, object] = info.get("cardData") or {}
    licence = card.get("license")
    return licence if isinstance(licence, str) else None


def hub_reachable(timeout_s: float = 3.0) -> bool:
    """Return whether the Hub answers within `timeout_s` seconds in all, name lookup included; any answer counts."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    answered: list[bool] = []
    thread = threading.Thread(target=lambda: answered.append(_answers(timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return any(answered)


def _answers(timeout_s: float) -> bool:
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT") or _ENDPOINT
    if not endpoint.startswith(("http://", "https://")):
        return False
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 (checked above)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310 (checked above)
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def adopt_cached(repo: str, files: Sequence[File], folder: Path) -> int:
    """Link each file that the cache has, whole and with the right hash, into `folder`; return the bytes saved.

    The cache names its blobs by hash. A hard link is safe: no program writes into a blob, and mlxq replaces files
    by rename alone. On another disk the file is copied, which is still cheaper than a download.
    """
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--")) / "blobs"
    return sum(file.size for file in files if _take(blobs / file.digest, file, folder / file.name))


def _take(blob: Path, file: File, target: Path) -> bool:
    if target.exists() or not blob.is_file() or blob.stat().st_size != file.size:
        return False
    if hash_file(blob, file.algorithm) != file.digest:
        return False
    link_or_copy(blob, target)
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link the file, or copy it where the two are on different disks."""
    try:
        os.link(source, target)
    except OSError as problem:
        if problem.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        temporary = target.with_name(target.name + ".copy")
        file_copy.copy(source, temporary)
        temporary.replace(target)
