"""Embeddings through the gateway beside the engine asked directly, and how near its vectors are to the reference.

`uv run python benchmarks/embeddings.py`. The engine is the real one, with all-MiniLM-L6-v2 from its wheel, on
loopback. The two ways are asked in turns, list by list, with the same texts; read the ratio. MLX's CPU backend on Linux
computes some 100 tokens/s: `--texts 1000` (200 tokens each, as the target has it) is for a Mac.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import retrieval
from support.gateway import MASTER, Gateway, Upstream
from support.retrieval import KEY, REFERENCE, vector

from tasks.weights import builtin_embedding

AT_MOST = 1.03
LEAST_COSINE = 0.999
REACHED = "reached"
WORD = "engine "
"""One token."""
Way = tuple[str, str]
"""Address and key."""


def main() -> None:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=40, help="texts asked of each way")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of one text")
    parser.add_argument("--list", type=int, default=4, help="texts of one request")
    size = parser.parse_args()
    with both_ways() as (ways, processes):
        report(size, ways, processes)


@contextmanager
def both_ways() -> Generator[tuple[dict[str, Way], dict[str, psutil.Process]]]:
    """Run an engine and a gateway before it; yield how each is asked, and their processes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        engine = retrieval.entry("embedding", builtin_embedding.ensure(root / "models"), "all-minilm-l6-v2")
        upstream = Upstream("standard")
        upstream.start()
        secrets = {"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": KEY}
        front = Gateway(root, [upstream.tier()], secrets, retrieval=[engine])
        try:
            with retrieval.running(engine, root) as direct:
                front.start()
                assert front.process
                processes = {"engine": psutil.Process(direct.process.pid), "gateway": psutil.Process(front.process.pid)}
                yield {"engine": (direct.url, KEY), "gateway": (front.url, MASTER)}, processes
        finally:
            front.stop()
            upstream.kill()


def report(size: argparse.Namespace, ways: dict[str, Way], processes: dict[str, psutil.Process]) -> None:
    """Measure both ways, and print a table."""
    rows = measured(size.texts, size.tokens, size.list, ways, processes)
    table(["", "engine", "gateway", "ratio", "must be", ""], rows)


def measured(
    texts: int, tokens: int, length: int, ways: dict[str, Way], processes: dict[str, psutil.Process]
) -> list[list[str]]:
    """Ask both ways in turns, list by list, and return the rows of the table: what other programs take, both wait for.

    `length`: texts of one list.
    """
    clients = {
        name: httpx.Client(base_url=url, headers=_authorized(key), timeout=600) for name, (url, key) in ways.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for name in ways:  # warms up
        asked_s(clients[name], tokens, length)
    before = {name: cpu_s(process) for name, process in processes.items()}
    for number in range(texts // length):
        for name in sorted(ways, reverse=bool(number % 2)):
            taken[name].append(asked_s(clients[name], tokens, length))
    used = {name: cpu_s(process) - before[name] for name, process in processes.items()}
    direct, through = (sum(taken[name]) for name in ("engine", "gateway"))
    ratio = statistics.median(through / direct for direct, through in zip(*taken.values(), strict=True))
    engine_s = used["engine"] / len(ways)
    work, cosine = 1 + used["gateway"] / engine_s, least_cosine(clients["gateway"])
    what = f"{texts} texts of {tokens} tokens, {length} a request, in turns"
    return [
        [what, f"{direct:.2f} s", f"{through:.2f} s", *_ratio(through / direct)],
        ["... the median of the pairs", "", "", *_ratio(ratio)],
        ["... in processor time", f"{engine_s:.2f} s", f"{engine_s + used['gateway']:.2f} s", *_ratio(work)],
        [
            *("least cosine to torch's vectors", "", f"{cosine:.7f}", "", f"≥ {LEAST_COSINE}"),
            _said(cosine >= LEAST_COSINE),
        ],
    ]


def _authorized(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _ratio(ratio: float) -> list[str]:
    return [f"{ratio:.4f}", f"≤ {AT_MOST}", _said(ratio <= AT_MOST)]


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time of a process so far, in seconds."""
    times = process.cpu_times()
    return times.user + times.system


def _said(reached: bool) -> str:
    return REACHED if reached else "MISSED"


def asked_s(client: httpx.Client, tokens: int, length: int) -> float:
    """Return the seconds that one list of texts takes."""
    texts = [WORD * (tokens - 2)] * length
    begun = time.perf_counter()
    answer = client.post("/v1/embeddings", json={"model": "embedding", "input": texts, "encoding_format": "base64"})
    taken_s = time.perf_counter() - begun
    assert len(answer.json()["data"]) == length, answer.text
    return taken_s


def least_cosine(client: httpx.Client) -> float:
    """Return the smallest cosine of a vector to the reference."""
    rows = client.post("/v1/embeddings", json={"model": "embedding", "input": REFERENCE["texts"]}).json()["data"]
    return min(float(vector(wanted) @ row["embedding"]) for wanted, row in zip(REFERENCE["minilm"], rows, strict=True))


if __name__ == "__main__":
    main()
