"""How much of a conversation is read again: `benchmarks/reuse.py [--models vision] [--turns 8]`.

mlxq's gateway with its engine, next to `rapid-mlx serve` and `vllm-mlx serve` by themselves in the same run, with the
models of tests/support/hybrid_model.py, and asked as agents ask: a conversation that grows by a tool's output each
turn, from a client that sends no thoughts back; another question under the same system prompt; two agents that take
turns; the conversation again after a planned restart, and after a cascade to another tier on the same engine; eight
streams at once against one. Shares are of the part that was read before, by what `usage` tells, else by the engine's
own count. `--agents` has Claude Code and Codex from npm ask in place of that. `--url URL --key KEY --model NAME` asks
an endpoint that runs already the first three.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import agents
from harness import table
from support import hybrid_model
from support.engines import KEY, Engine, installation
from support.gateway import Gateway
from support.ports import free_port

from catalog.engines import FALLBACK
from tasks.engines.base import QUIET
from tasks.supervision import probe
from tasks.weights import builtin

RULES = " ".join(f"Rule {number}: always check file number {number} before you write." for number in range(100))
OUTPUT = " ".join(f"Line {number} of a tool's output." for number in range(60))
NAME = "longctx"
CONTEXT = 16_384
STREAMS, TOKENS = 8, 64
WHAT = (
    "growing conversation",
    "same system prompt",
    "two agents in turn",
    "after a planned restart",
    "after a cascade",
    "8 streams / 1, tokens/s",
    "resident",
)
Message = dict[str, str]


@dataclass
class Endpoint:
    """Where questions go."""

    url: str
    key: str
    model: str
    counted: Callable[[], int]
    """Tokens that the engine did not read again so far."""

    def post(self, talk: list[Message], **more: Any) -> dict[str, Any]:
        body = {"model": self.model, "messages": talk, "max_tokens": 2, "temperature": 0, **more}
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=600)
        return answer.raise_for_status().json()["usage"]

    def ask(self, talk: list[Message]) -> tuple[int, int]:
        """Return the tokens of the prompt, and those that were not read again."""
        before = self.counted()
        usage = self.post(talk)
        told = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return usage["prompt_tokens"], self.counted() - before if told is None else told


@dataclass
class Subject:
    """One program with one model, which can be started again."""

    start: Callable[[], None]
    stop: Callable[[], None]
    endpoint: Endpoint
    resident: Callable[[], int]


def system(who: str) -> Message:
    return {"role": "system", "content": f"You are {who}, a careful coding agent. {RULES}"}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def grown(talk: list[Message], turn: int) -> list[Message]:
    """Return the conversation one turn later; the client sends no thoughts back."""
    return [*talk, {"role": "assistant", "content": f"Answer {turn}."}, user(f"Question {turn}. {OUTPUT}")]


def growing(endpoint: Endpoint, who: str, turns: int) -> float:
    """Return the least share of a turn's old part that was not read again."""
    talk = [system(who), user("List the files.")]
    old, shares = endpoint.ask(talk)[0], []
    for turn in range(1, turns):
        talk = grown(talk, turn)
        prompt, cached = endpoint.ask(talk)
        shares.append(min(1.0, cached / old))
        old = prompt
    return min(shares)


def other_question(endpoint: Endpoint, who: str) -> float:
    """Return the share of a system prompt that another question under it did not read again."""
    prompt, cached = endpoint.ask([system(who), user("Something else entirely.")])
    return min(1.0, cached / prompt)


def two_agents(endpoint: Endpoint, turns: int) -> float:
    """Return the least share of two agents that take turns."""
    talks = {who: [system(who), user("Begin.")] for who in ("Ann", "Ben")}
    old = {who: endpoint.ask(talk)[0] for who, talk in talks.items()}
    shares: list[float] = []
    for turn in range(1, turns):
        for who, talk in list(talks.items()):
            talks[who] = grown(talk, turn)
            prompt, cached = endpoint.ask(talks[who])
            shares.append(min(1.0, cached / old[who]))
            old[who] = prompt
    return min(shares)


def streams(endpoint: Endpoint, number: int) -> float:
    """Return the tokens/s of `number` answers at once, all together."""
    talks = [[user(f"{number} {at}: tell a long story.")] for at in range(number)]
    began = time.perf_counter()
    with ThreadPoolExecutor(number) as pool:
        usages = list(pool.map(lambda talk: endpoint.post(talk, max_tokens=TOKENS, temperature=1), talks))
    return sum(usage["completion_tokens"] for usage in usages) / (time.perf_counter() - began)


def measure(endpoint: Endpoint, turns: int) -> dict[str, str]:
    """Return the three shares that need no restart."""
    return {
        WHAT[0]: f"{growing(endpoint, 'Kim', turns):.0%}",
        WHAT[1]: f"{other_question(endpoint, 'Kim'):.0%}",
        WHAT[2]: f"{two_agents(endpoint, turns):.0%}",
    }


def measured(subject: Subject, turns: int) -> dict[str, str]:
    """Return all that is measured of one program with one model."""
    subject.start()
    try:
        found = measure(subject.endpoint, turns)
        streams(subject.endpoint, 1)
        one, many = streams(subject.endpoint, 1), streams(subject.endpoint, STREAMS)
        found[WHAT[5]] = f"{many / one:.1f} x ({many:.0f} / {one:.0f})"
        found[WHAT[6]] = f"{subject.resident() / 2**20:.0f} MB"
        talk = grown([system("Eve"), user("List the files.")], 1)
        old = subject.endpoint.ask(talk)[0]
        subject.stop()
        subject.start()
        found[WHAT[3]] = f"{min(1.0, subject.endpoint.ask(grown(talk, 2))[1] / old):.0%}"
    finally:
        subject.stop()
    return found


# By itself


@contextmanager
def alone(name: str, folder: Path, home: Path, at: Any) -> Iterator[Subject]:
    """Yield an engine's own command, with its own defaults."""
    port, program = free_port(), str(Path(at.python).with_name(name))
    argv = [program, "serve", str(folder), "--port", str(port), "--host", "127.0.0.1", "--served-model-name", NAME]
    argv += (
        ["--continuous-batching", "--offline"] if name == FALLBACK else ["--no-preflight", "--force-disk-check", "-y"]
    )
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **QUIET, "HOME": str(home), "MLX_DISABLE_COMPILE": "1", "RAPID_MLX_TELEMETRY": "0"}
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (home / "log").open("ab") as log:
            processes.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))
        while not probe.listening(port):
            assert processes[-1].poll() is None, (home / "log").read_text()[-2000:]
            time.sleep(0.1)

    def stop() -> None:
        processes[-1].terminate()
        processes[-1].wait(60)

    def resident() -> int:
        return int(Path(f"/proc/{processes[-1].pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def counted() -> int:
        return probe.status(port, "none", 30, release=at.name).cached_tokens

    try:
        yield Subject(start, stop, Endpoint(f"http://127.0.0.1:{port}", "none", NAME, counted), resident)
    finally:
        for process in processes:
            process.kill()


# mlxq


def of_mlxq(engine: Engine, home: Path, turns: int) -> dict[str, str]:
    """Return all that is measured of the gateway with an engine behind it."""
    home.mkdir(parents=True, exist_ok=True)
    dead = replace(engine.tier, name="standard", port=free_port())
    front = Gateway(
        home=home,
        tiers=[dead, engine.tier],
        secrets={"LITELLM_MASTER_KEY": KEY, "MLXQ_TIER_KEY": KEY},
        programs=dict.fromkeys(("standard", NAME), engine.at.engine),
    )
    front.start()
    try:
        endpoint = Endpoint(front.url, KEY, NAME, lambda: 0)
        found = measured(Subject(engine.start, engine.stop, endpoint, lambda: engine.resident), turns)
        engine.start()
        talk = grown([system("Zoe"), user("List the files.")], 1)
        old = endpoint.ask(talk)[0]
        cascaded = replace(endpoint, model="standard")
        found[WHAT[4]] = f"{min(1.0, cascaded.ask(grown(talk, 2))[1] / old):.0%}"
        engine.stop()
    finally:
        front.stop()
    return found


def compared(model: str, weights: Path, root: Path, turns: int) -> None:
    """Print the table of one model."""
    folder = hybrid_model.make(model, root / "families" / model, weights)
    columns: dict[str, dict[str, str]] = {}
    for name in (FALLBACK, "rapid-mlx"):
        at = installation(name, root)
        with alone(name, folder, root / f"{name}-{model}", at) as subject:
            columns[f"`{name} serve`"] = measured(subject, turns)
        engine = Engine(root / f"mlxq-{name}-{model}", folder, at, context=CONTEXT, concurrency=STREAMS, name=NAME)
        engine.more = {"vision": model == "vision", "reasoning_parser": None if model == "plain" else "qwen3"}
        columns[f"mlxq with {name}"] = of_mlxq(engine, root / f"gateway-{name}-{model}", turns)
    print(f"\n{model}\n")
    table(["", *columns], [[what, *(columns[name].get(what, "-") for name in columns)] for what in WHAT])
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=hybrid_model.NAMES)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--engines-at", help="a folder with installed engines, to save their installation")
    parser.add_argument("--agents", nargs="*", choices=("rapid-mlx", FALLBACK), help="the engines for real agents")
    parser.add_argument("--npm-at", help="a folder with the agents from npm, to save their installation")
    parser.add_argument("--url")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="standard")
    wanted = parser.parse_args()
    if wanted.url:
        print(measure(Endpoint(wanted.url, wanted.key, wanted.model, lambda: 0), wanted.turns))
        return
    with tempfile.TemporaryDirectory() as place:
        root = Path(wanted.engines_at or place)
        weights = builtin.ensure(root / "models")
        for name in wanted.agents or ():
            agents.compared(installation(name, root), weights, Path(wanted.npm_at or root / "npm"), root)
        for model in [] if wanted.agents else wanted.models:
            compared(model, weights, root, wanted.turns)


if __name__ == "__main__":
    main()
