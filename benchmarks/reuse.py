"""How much of a conversation is read again, and what engines cost: `benchmarks/reuse.py [--only reuse install]`.

Prints each row of what mlxq must reach, with its bound and whether it is met:

- `reuse`: mlxq's gateway with the engine that `auto` takes, next to `rapid-mlx serve` and `vllm-mlx serve` by
  themselves in the same run, with the models of tests/support/hybrid_model.py, and asked as agents ask: a
  conversation that grows by a tool's output each turn, from a client that sends no thoughts back; another question
  under the same system prompt; two agents that take turns; the conversation again after a planned restart, and
  after a cascade to another tier on the same engine. Shares are of the part that was read before, by what `usage`
  tells, else by the engine's own count; the least of all turns counts.
- `streams`: eight answers of the built-in model at once against one.
- `resident`: an engine under mlxq after prompts that fill the cache that the plan gives the built-in model.
- `install`: rapid-mlx installed and proven, its files in uv's cache.
- `outbound`: what engines ask for in a network namespace without a way out, by strace.

`--agents` has Claude Code and Codex from npm ask in place of that. `--url URL --key KEY --model NAME` asks an endpoint
that runs already.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import agents
from harness import table
from support import hybrid_model, outbound, retrieval
from support.engines import KEY, Engine, installation
from support.gateway import Gateway
from support.ports import free_port

from catalog.engines import FALLBACK, entry
from catalog.score import BUILTIN_CACHE
from state.db import open_database
from state.paths import Home
from tasks.engines import environments, install, installed, smoke
from tasks.engines.base import QUIET, Installation
from tasks.supervision import probe
from tasks.system.child import run_child
from tasks.weights import builtin, builtin_embedding

RULES = " ".join(f"Rule {number}: always check file number {number} before you write." for number in range(100))
OUTPUT = " ".join(f"Line {number} of a tool's output." for number in range(20))
NAME = "longctx"
CHOSEN = "rapid-mlx"
"""The engine that `auto` takes for most models."""
CONTEXT = 16_384
STREAMS, TOKENS = 8, 24
TURNS_ALONE = 3
PROMPTS = 12
"""Prompts, of 90 tokens each with those before them, that are more than the built-in model's cache holds."""
LEAST = {
    "growing conversation": 0.98,
    "same system prompt": 0.98,
    "two agents in turn": 0.95,
    "after a planned restart": 0.9,
    "after a cascade": 0.95,
}
"""What is measured -> the share of the old part that must not be read again."""
GROWING, SYSTEM, TWO, RESTART, CASCADE = LEAST
RESIDENT_BYTES, INSTALL_S = 400 * 2**20, 90.0
ALIKE = 0.9
"""Two speeds that differ by less than a tenth are the same."""
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
    stop: Callable[[], object]
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


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    alone: dict[str, str]
    """Engine -> what it does by itself."""
    mlxq: str
    bound: str
    met: bool

    def cells(self) -> list[str]:
        return [
            self.what,
            *(self.alone.get(name, "-") for name in (FALLBACK, CHOSEN)),
            self.mlxq,
            self.bound,
            "met" if self.met else "MISSED",
        ]


def measure(endpoint: Endpoint, turns: int) -> dict[str, float]:
    """Return the three shares that need no restart."""
    return {
        GROWING: growing(endpoint, "Kim", turns),
        SYSTEM: other_question(endpoint, "Kim"),
        TWO: two_agents(endpoint, turns),
    }


def restarted(subject: Subject) -> float:
    """Return the share of a turn that a new process did not read again."""
    talk = grown([system("Eve"), user("List the files.")], 1)
    old = subject.endpoint.ask(talk)[0]
    subject.stop()
    subject.start()
    return min(1.0, subject.endpoint.ask(grown(talk, 2))[1] / old)


def measured(subject: Subject, turns: int) -> dict[str, float]:
    """Return the shares of one program with one model."""
    subject.start()
    try:
        return measure(subject.endpoint, turns) | {RESTART: restarted(subject)}
    finally:
        subject.stop()


def ratio(endpoint: Endpoint) -> tuple[float, float]:
    """Return the tokens/s of one answer and of eight at once."""
    streams(endpoint, 1)
    return streams(endpoint, 1), streams(endpoint, STREAMS)


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


@contextmanager
def behind(engine: Engine, home: Path) -> Iterator[Gateway]:
    """Yield a gateway before an engine, with another tier of the same program that is down."""
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
        yield front
    finally:
        front.stop()


def of_mlxq(engine: Engine, home: Path, turns: int) -> dict[str, float]:
    """Return the shares of the gateway with an engine behind it."""
    with behind(engine, home) as front:
        endpoint = Endpoint(front.url, KEY, NAME, lambda: 0)
        found = measured(Subject(engine.start, engine.stop, endpoint, lambda: engine.resident), turns)
        engine.start()
        try:
            talk = grown([system("Zoe"), user("List the files.")], 1)
            old = endpoint.ask(talk)[0]
            cascaded = replace(endpoint, model="standard")
            found[CASCADE] = min(1.0, cascaded.ask(grown(talk, 2))[1] / old)
        finally:
            engine.stop()
    return found


@dataclass(frozen=True)
class Setting:
    """What all parts measure with."""

    root: Path
    engines: Path
    """Where engines are installed."""
    weights: Path
    """The built-in model."""
    models: Sequence[str]
    turns: int

    def engine(self, name: str) -> Installation:
        return installation(name, self.engines)


def reuse(at: Setting) -> Iterator[Row]:
    """Yield the shares of each model."""
    for model in at.models:
        folder = hybrid_model.make(model, at.root / "families" / model, at.weights, hybrid_model.WHOLE)
        alone_: dict[str, dict[str, float]] = {}
        for name in (FALLBACK, CHOSEN):
            with alone(name, folder, at.root / f"{name}-{model}", at.engine(name)) as subject:
                alone_[name] = measured(subject, TURNS_ALONE)
        engine = Engine(at.root / f"mlxq-{model}", folder, at.engine(CHOSEN), context=CONTEXT, name=NAME)
        engine.more = {"vision": model == "vision", "reasoning_parser": None if model == "plain" else "qwen3"}
        ours = of_mlxq(engine, at.root / f"gateway-{model}", at.turns)
        for what, share in ours.items():
            told = {name: f"{shares[what]:.1%}" for name, shares in alone_.items() if what in shares}
            yield Row(f"{what}, {model}", told, f"{share:.1%}", f"≥ {LEAST[what]:.0%}", share >= LEAST[what])


def throughput(at: Setting) -> Iterator[Row]:
    """Yield the tokens/s of eight answers at once."""
    told: dict[str, tuple[float, float]] = {}
    for name in (FALLBACK, CHOSEN):
        with alone(name, at.weights, at.root / f"{name}-streams", at.engine(name)) as subject:
            subject.start()
            told[name] = ratio(subject.endpoint)
    engine = Engine(at.root / "mlxq-streams", at.weights, at.engine(CHOSEN), concurrency=STREAMS, name=NAME)
    engine.cache_bytes = BUILTIN_CACHE
    engine.start()
    try:
        with behind(engine, at.root / "gateway-streams") as front:
            one, many = ratio(Endpoint(front.url, KEY, NAME, lambda: 0))
    finally:
        engine.stop(1)
    least = ALIKE * max(speeds[1] for speeds in told.values())
    words = {name: f"{speeds[1]:.0f} of {speeds[0]:.0f}" for name, speeds in told.items()}
    bound = f"≥ {least:.0f}, the faster one's but a tenth"
    yield Row(f"{STREAMS} streams, tokens/s, of one", words, f"{many:.0f} of {one:.0f}", bound, many >= least)


def resident(at: Setting) -> Iterator[Row]:
    """Yield what an engine takes at most while prompts fill its cache."""
    for name in (FALLBACK, CHOSEN):
        engine = Engine(at.root / f"resident-{name}", at.weights, at.engine(name), BUILTIN_CACHE, 4096, 1, NAME)
        engine.start()
        most, talk = engine.resident, list[Message]()
        for number in range(PROMPTS):
            talk = [*talk, user(f"Number {number} of the things that I ask. " * 5)]
            engine.post("/v1/chat/completions", {"model": NAME, "messages": talk, "max_tokens": 2})
            talk = [*talk, {"role": "assistant", "content": "Yes."}]
            most = max(most, engine.resident)
        engine.stop(1)
        bound = f"≤ {RESIDENT_BYTES / 2**20:.0f} MB"
        yield Row(f"resident, {name}, built-in model", {}, f"{most / 2**20:.0f} MB", bound, most <= RESIDENT_BYTES)


def installing(at: Setting) -> Iterator[Row]:
    """Yield the seconds until rapid-mlx is proven, by the child of mlxq's own job."""
    home = Home(at.root / "install-home")
    db = open_database(home)
    folder = installed.folder(home, CHOSEN, version := entry(CHOSEN).version)
    staged = environments.StagedEnvironment(folder).folder
    request = {
        "engine": CHOSEN,
        "version": version,
        "folder": str(folder),
        "lock": str(install.lock(home.engines, CHOSEN, version)),
        "smoke": smoke.request(db, home, Installation(CHOSEN, version, str(installed.python(staged))), at.weights),
        "reuse": True,
        "proven": False,
    }
    db.close()
    began = time.perf_counter()
    proof = run_child("tasks.engines.install", request)
    took = time.perf_counter() - began
    got = f"{took:.0f} s, {proof['downloaded_bytes'] / 1e6:.0f} MB came"
    yield Row(f"{CHOSEN} installed → proven", {}, got, f"≤ {INSTALL_S:.0f} s", took <= INSTALL_S)


def leaving(at: Setting) -> Iterator[Row]:
    """Yield the look-ups of each engine, that of embeddings too."""
    if not outbound.can_be_seen():
        sys.exit("This system allows no network namespace, or has no strace.")
    folder = hybrid_model.make("plain", at.root / "families" / "plain", at.weights, hybrid_model.WHOLE)
    for name in (FALLBACK, CHOSEN):
        home = at.root / f"outbound-{name}"
        home.mkdir()
        engine = Engine(home, folder, at.engine(name))
        found = outbound.calls(engine.launch(), engine.url, outbound.CHAT, engine.body(max_tokens=3), home)
        yield Row(f"outbound look-ups, {name}", {}, str(len(found)), "0", not found)
    home = at.root / "outbound-embedding"
    home.mkdir()
    served = retrieval.entry("embedding", builtin_embedding.ensure(at.root / "models"), "all-minilm-l6-v2")
    url, body = f"http://127.0.0.1:{served.port}", {"model": "embedding", "input": ["Hi"]}
    found = outbound.calls(retrieval.launch(served, home), url, "/v1/embeddings", body, home, key=retrieval.KEY)
    yield Row("outbound look-ups, mlx-embeddings", {}, str(len(found)), "0", not found)


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "reuse": reuse,
    "streams": throughput,
    "resident": resident,
    "install": installing,
    "outbound": leaving,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="the parts to measure")
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
        if wanted.agents:
            return
        setting = Setting(Path(place), root, weights, wanted.models, wanted.turns)
        rows: list[Row] = []
        for part in wanted.only:
            for row in PARTS[part](setting):
                print(" · ".join(row.cells()), file=sys.stderr, flush=True)
                rows.append(row)
        table(["", f"`{FALLBACK} serve`", f"`{CHOSEN} serve`", "mlxq", "bound", ""], [row.cells() for row in rows])


if __name__ == "__main__":
    main()
