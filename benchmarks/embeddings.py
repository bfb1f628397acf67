"""Embeddings through the gateway beside the engine asked directly, and how near its vectors are to the reference.

`uv run python benchmarks/embeddings.py`. The engine is the real one, with all-MiniLM-L6-v2 from its wheel, on
loopback. The two ways are asked in turns, with the same lists of texts; read the ratio. MLX's CPU backend on Linux
computes some 100 tokens/s: `--texts 1000` (200 tokens each, as the target has it) is for a Mac.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
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
WORD = "engine "
"""One token."""


def main() -> None:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=16, help="texts of one round")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of one text")
    parser.add_argument("--list", type=int, default=4, help="texts of one request")
    parser.add_argument("--rounds", type=int, default=5)
    size = parser.parse_args()
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
                report(size, {"engine": (direct.url, KEY), "gateway": (front.url, MASTER)}, processes)
        finally:
            front.stop()
            upstream.kill()


def report(size: argparse.Namespace, ways: dict[str, tuple[str, str]], processes: dict[str, psutil.Process]) -> None:
    """Ask both ways in turns and print what came of it. `ways`: address and key, by name."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    used = dict.fromkeys(processes, 0.0)
    for number in range(size.rounds + 1):
        for name in sorted(ways, reverse=bool(number % 2)):
            before = {process: cpu_s(processes[process]) for process in processes}
            seconds = round_s(size, *ways[name])
            if number:  # the first one warms up
                taken[name].append(seconds)
            if number and name == "gateway":
                used = {process: used[process] + cpu_s(processes[process]) - before[process] for process in processes}
    direct, through = (statistics.median(taken[name]) for name in ("engine", "gateway"))
    ratio, cosine = through / direct, least_cosine(*ways["gateway"])
    work = 1 + used["gateway"] / used["engine"]
    texts = f"{size.texts} texts of {size.tokens} tokens, {size.list} a request"
    table(
        ["", "engine", "gateway", "ratio", "must be", ""],
        [
            [
                texts,
                f"{direct:.2f} s",
                f"{through:.2f} s",
                f"{ratio:.3f}",
                f"≤ {AT_MOST}",
                _said(ratio <= AT_MOST),
            ],
            [
                "the same in processor time, which other programs do not disturb",
                f"{used['engine']:.2f} s",
                f"{used['engine'] + used['gateway']:.2f} s",
                f"{work:.4f}",
                f"≤ {AT_MOST}",
                _said(work <= AT_MOST),
            ],
            [
                "least cosine to torch's vectors",
                "",
                f"{cosine:.7f}",
                "",
                f"≥ {LEAST_COSINE}",
                _said(cosine >= LEAST_COSINE),
            ],
        ],
    )


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time of a process so far, in seconds."""
    times = process.cpu_times()
    return times.user + times.system


def _said(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def round_s(size: argparse.Namespace, url: str, key: str) -> float:
    """Return the seconds that all texts take, list after list."""
    text = WORD * (size.tokens - 2)
    with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=600) as client:
        begun = time.perf_counter()
        for start in range(0, size.texts, size.list):
            texts = [text] * min(size.list, size.texts - start)
            body = {"model": "embedding", "input": texts, "encoding_format": "base64"}
            answer = client.post(f"{url}/v1/embeddings", json=body)
            assert len(answer.json()["data"]) == len(texts), answer.text
        return time.perf_counter() - begun


def least_cosine(url: str, key: str) -> float:
    """Return the smallest cosine of a vector to the reference."""
    body = {"model": "embedding", "input": REFERENCE["texts"]}
    answer = httpx.post(f"{url}/v1/embeddings", json=body, headers={"authorization": f"Bearer {key}"}, timeout=600)
    rows = answer.json()["data"]
    return min(float(vector(wanted) @ row["embedding"]) for wanted, row in zip(REFERENCE["minilm"], rows, strict=True))


if __name__ == "__main__":
    main()
