"""How much of their prompts real agents have read again: `benchmarks/reuse.py --agents`.

Claude Code and Codex from npm, set up as `mlxq connect` does, hold a conversation through mlxq's gateway with a real
engine behind it. The model is the hybrid of tests/support/hybrid_model.py: it thinks and then says the same sentence
each time, and what the agents send is their own. By the gateway's count: which share of the prompts of a turn was not
read again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import table
from support import hybrid_model, npm
from support.engines import KEY, Engine
from support.gateway import Gateway
from support.npm import Person

from mlxq.clients.client import Target
from state.db import open_database
from state.paths import Home
from state.stack import Defaults, Tier
from tasks.engines import model_facts, serving
from tasks.engines.base import Installation
from tasks.gateway import usage_counter

CONTEXT, LIMIT_S = 32_768, 900
QUESTIONS = ("Which files are there?", "Which one is the largest?", "And the oldest?", "What would you do first?")
CODEX = ("exec", "--profile", "mlxq", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
SUMS = (
    "SELECT COALESCE(SUM(requests), 0), SUM(failed), SUM(prompt_tokens), SUM(cached_tokens) FROM usage WHERE tier = ?"
)
THOUGHTS = "\nI look at what was asked, and then answer quickly"
WORDS = "\n\nThere are two files here: notes & plan."
"""Each begins with what the chat template ends a prompt with; no token is twice in one of them."""
END = 2
"""The token that ends a turn."""
THINKING = Defaults(thinking=True, thinking_budget=16, temperature=1.0)


@dataclass
class Agent:
    """One agent in a home of its own."""

    name: str
    client: str
    program: str
    argv: Callable[[str, int], list[str]]
    """Question and number of the turn -> its arguments."""
    environment: dict[str, str] = field(default_factory=dict[str, str])


AGENTS = (
    Agent("Claude Code", "claude-code", "claude", lambda text, turn: [*(["--continue"] if turn else []), "-p", text]),
    Agent("Codex", "codex", "codex", lambda text, turn: [*CODEX, *(["resume", "--last"] if turn else []), text]),
)


def run(agent: Agent, person: Person, program: str, text: str, turn: int) -> None:
    """Ask one question. Exits where the agent failed."""
    argv = [program, *agent.argv(text, turn)]
    environment = {**person.environment(), **agent.environment}
    done = subprocess.run(
        argv, cwd=person.work, env=environment, input="", capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    if done.returncode:
        sys.exit(f"{agent.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def counted(front: Gateway, tier: str) -> list[int]:
    """Return what the gateway counted: requests, those that failed, tokens of prompts, those not read again.

    It writes its sums every few seconds, and an agent may ask in the background after its answer.
    """
    sums = [-1]
    while (now := _sums(front, tier)) != sums:
        sums = now
        time.sleep(2 * usage_counter.EVERY_S)
    return sums


def _sums(front: Gateway, tier: str) -> list[int]:
    db = open_database(Home(front.home))
    try:
        row = db.row(SUMS, (tier,))
        return [int(number or 0) for number in row] if row else [0] * 4
    finally:
        db.close()


def measured(agent: Agent, program: str, front: Gateway, target: Target, root: Path) -> list[list[str]]:
    """Return a row a turn: its requests, its prompts, what was not read again, and that share."""
    root.mkdir()
    person = Person.make(root)
    person.connect(agent.client, target)
    rows: list[list[str]] = []
    before = counted(front, "standard")
    for turn, text in enumerate(QUESTIONS):
        began = time.perf_counter()
        run(agent, person, program, text, turn)
        seconds, now = time.perf_counter() - began, counted(front, "standard")
        requests, failed, prompt, cached = (after - count for after, count in zip(now, before, strict=True))
        share = f"{cached / prompt:.1%}"
        counts = (f"{number:,}" for number in (turn + 1, requests, failed, prompt, cached))
        rows.append([agent.name, *counts, share, f"{seconds:.0f} s"])
        print(rows[-1], file=sys.stderr, flush=True)
        before = now
    return rows


def answering(folder: Path) -> Path:
    """Have a model of random weights think, and then say a sentence, as a real one does.

    An answer without a visible word would not do: Claude Code asks again after it, and puts a line into the midst of
    the turn. Which token follows which is planted in a last layer of its own. The thoughts run in a circle until the
    budget ends them.
    """
    import mlx.core as mx
    from tokenizers import Tokenizer

    tokenizer, file = Tokenizer.from_file(str(folder / "tokenizer.json")), folder / "model.safetensors"
    thoughts, words = (tokenizer.encode(text, add_special_tokens=False).ids for text in (THOUGHTS, WORDS))
    follows = [*pairwise([*thoughts, thoughts[1]]), *pairwise([*words, END])]
    weights: Any = mx.load(str(file))
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    weights[name] = mx.random.normal(weights[name].shape, key=mx.random.key(1)).astype(mx.bfloat16)
    tokens, after = (mx.array(side) for side in zip(*follows, strict=True))
    head = mx.zeros_like(weights[name]).at[after].add(weights[name][tokens])
    named = {"language_model.lm_head.weight": head}
    mx.save_safetensors(str(file), {**weights, **named}, metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def compared(at: Installation, weights: Path, programs: Path, root: Path) -> None:
    """Print the table of both agents with one engine."""
    folder = answering(hybrid_model.make("hybrid", root / f"agents-{at.engine}", weights, hybrid_model.WHOLE))
    engine = Engine(root / f"agents-home-{at.engine}", folder, at, context=CONTEXT, name="standard", cache_bytes=2**30)
    engine.more = {"reasoning_parser": "qwen3"}
    tiers = [Tier("standard", engine.tier, THINKING), Tier("fast", engine.tier, Defaults(thinking=False))]
    front = Gateway(
        home=root / f"agents-gateway-{at.engine}",
        tiers=[*tiers],
        secrets={"LITELLM_MASTER_KEY": KEY, "MLXQ_TIER_KEY": KEY},
        programs={"standard": at.engine},
        templates={"standard": serving.template(engine.tier, model_facts.read(folder))},
    )
    front.home.mkdir()
    rows: list[list[str]] = []
    engine.start()
    front.start()
    try:
        for agent in AGENTS:
            program = npm.install(agent.program, programs)
            rows += measured(
                agent, program, front, Target(front.url, KEY, tiers), root / f"{agent.program}-{at.engine}"
            )
    finally:
        front.stop()
        engine.stop(1)
    print(f"\nhybrid, {at.name}\n")
    table(["", "turn", "requests", "failed", "prompt", "not read again", "share", "wall"], rows)
    sys.stdout.flush()
