"""How much of a conversation each engine reads again: `benchmarks/reuse.py [--models vision] [--turns 4]`.

Each engine is started as mlxq starts it, with the models of tests/support/hybrid_model.py, and asked as agents ask: a
conversation that grows by a tool's output each turn, another question under the same system prompt, two agents that
take turns, and the conversation again after a restart. Shares are of the part that was read before, by what `usage`
tells, else by the engine's own count. `--url URL --key KEY --model NAME` asks an endpoint that runs already, such as
mlxq's gateway, the first three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support import hybrid_model
from support.engines import KEY, MIB, Engine, installation

from tasks.engines import adapters
from tasks.weights import builtin

RULES = " ".join(f"Rule {number}: always check file number {number} before you write." for number in range(100))
OUTPUT = " ".join(f"Line {number} of a tool's output." for number in range(60))
Message = dict[str, str]


@dataclass
class Endpoint:
    """Where questions go."""

    url: str
    key: str
    model: str
    counted: Callable[[], int]
    """Tokens that the engine did not read again so far."""

    def ask(self, talk: list[Message]) -> tuple[int, int]:
        """Return the tokens of the prompt, and those that were not read again."""
        before = self.counted()
        body = {"model": self.model, "messages": talk, "max_tokens": 2, "temperature": 0}
        answer = httpx.post(
            f"{self.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {self.key}"}, timeout=600
        )
        usage: dict[str, Any] = answer.raise_for_status().json()["usage"]
        told = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return usage["prompt_tokens"], self.counted() - before if told is None else told


def system(who: str) -> Message:
    return {"role": "system", "content": f"You are {who}, a careful coding agent. {RULES}"}


def grown(talk: list[Message], turn: int) -> list[Message]:
    """Return the conversation one turn later; the client sends no thoughts back."""
    return [
        *talk,
        {"role": "assistant", "content": f"Answer {turn}."},
        {"role": "user", "content": f"Question {turn}. {OUTPUT}"},
    ]


def growing(endpoint: Endpoint, who: str, turns: int) -> list[float]:
    """Return the share of each turn's old part that was not read again."""
    talk = [system(who), {"role": "user", "content": "List the files."}]
    old, shares = endpoint.ask(talk)[0], []
    for turn in range(1, turns):
        talk = grown(talk, turn)
        prompt, cached = endpoint.ask(talk)
        shares.append(min(1.0, cached / old))
        old = prompt
    return shares


def other_question(endpoint: Endpoint, who: str) -> float:
    """Return the share of a system prompt that another question under it did not read again."""
    prompt, cached = endpoint.ask([system(who), {"role": "user", "content": "Something else entirely."}])
    return min(1.0, cached / prompt)


def two_agents(endpoint: Endpoint, turns: int) -> float:
    """Return the least share of two agents that take turns."""
    talks = {who: [system(who), {"role": "user", "content": "Begin."}] for who in ("Ann", "Ben")}
    old = {who: endpoint.ask(talk)[0] for who, talk in talks.items()}
    shares: list[float] = []
    for turn in range(1, turns):
        for who, talk in list(talks.items()):
            talks[who] = grown(talk, turn)
            prompt, cached = endpoint.ask(talks[who])
            shares.append(min(1.0, cached / old[who]))
            old[who] = prompt
    return min(shares)


def measure(endpoint: Endpoint, turns: int) -> dict[str, str]:
    """Return the three shares that need no restart."""
    return {
        "growing conversation": f"{min(growing(endpoint, 'Kim', turns)):.0%}",
        "same system prompt": f"{other_question(endpoint, 'Kim'):.0%}",
        "two agents in turn": f"{two_agents(endpoint, turns):.0%}",
    }


def of_engine(name: str, model: str, folder: Path, root: Path, turns: int) -> dict[str, str]:
    """Return all that is measured of one engine with one model."""
    engine = Engine(root / f"{name}-{model}", folder, installation(name, root), context=16_384)
    engine.more = {"vision": model == "vision", "reasoning_parser": None if model == "plain" else "qwen3"}
    engine.start()
    endpoint = Endpoint(engine.url, KEY, engine.name, lambda: engine.status().cached_tokens)
    found = measure(endpoint, turns) | {"resident": f"{engine.resident / MIB:.0f} MB"}
    engine.stop()
    engine.start()
    talk = grown([system("Kim"), {"role": "user", "content": "List the files."}], 1)
    first, cached = endpoint.ask(talk)
    found["after a restart"] = f"{min(1.0, cached / first):.0%}"
    engine.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=hybrid_model.NAMES)
    parser.add_argument("--engines", nargs="*", default=list(adapters.ENGINES))
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--url")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="standard")
    wanted = parser.parse_args()
    if wanted.url:
        print(measure(Endpoint(wanted.url, wanted.key, wanted.model, lambda: 0), wanted.turns))
        return
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        weights = builtin.ensure(root / "models")
        for model in wanted.models:
            folder = hybrid_model.make(model, root / "families" / model, weights)
            for name in wanted.engines:
                print(model, name, of_engine(name, model, folder, root, wanted.turns), flush=True)


if __name__ == "__main__":
    main()
