"""A fleet of a thousand Macs in simulation: who waits how long, and where one front, one Redis or one file breaks.

    python benchmarks/fleet_sim.py                        1,000 nodes and 100,000 conversations, then 10 and 100 nodes
    python benchmarks/fleet_sim.py --nodes 100 --conversations 10000 --affinity off
    python benchmarks/fleet_sim.py --json                 the figures for programs

A discrete-event simulation: nothing is asked and nothing sleeps. It drives the front's routing rules (RULES) over nodes
whose speeds the catalog predicts, and is the same for the same seed. What it does not have: the network between front
and nodes, and clients that leave.

Every figure it rests on has its source beside it.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import json
import math
import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, count
from typing import Any

from choice import mac
from harness import table

from catalog.chips import bins
from catalog.fit import cache_bytes, memory
from catalog.load import entries
from catalog.machine import Machine, budget
from catalog.speed import predict_all

MODEL, QUANT, WINDOW, SLOTS = "qwen3.6-35b-a3b", "int4", 131_072, 4
"""What every node serves as `standard`, and the requests at once that mlxq plans for (catalog/intent.py)."""
MIX = (
    ("M4 Pro", 20, 48, 0.30),
    ("M4 Max", 40, 64, 0.25),
    ("M1 Max", 32, 64, 0.15),
    ("M3 Ultra", 60, 96, 0.15),
    ("M5 Max", 40, 128, 0.15),
)
"""Chip, cores of its GPU, GB and share of the nodes. The shares are an assumption: they are not published."""
BATCH_EXPONENT = math.log(4.3) / math.log(16)
"""16 requests at once write 4.3 times what one does: vllm-mlx on an M4 Max, arXiv 2601.19139."""

CALLS, CALLS_SIGMA, MOST_CALLS = 30.9, 1.78, 1_107
"""Calls of a conversation: their mean is that of 9,310,255 calls in 301,026 sessions (GitHub Copilot coding agents of
June 2026, Azure/AzurePublicDataset); their spread that of TraceLab (mean 73.6, median 15, p99 1,107), arXiv
2606.30560."""
FIRST_PROMPT, SYSTEM_TOKENS = 20_420, 16_400
"""Tokens of Claude Code's first prompt, and of it those that a node which served one before does not read: measured,
docs/performance.md."""
FRESH, FRESH_SIGMA = 1_205, 1.3
"""Tokens that a call adds to the prompt besides the answer before: 430.2 million in 357,161 steps, TraceLab."""
ANSWER, ANSWER_SIGMA = 527, 1.3
"""Tokens of an answer: 4.91 billion in 9,310,255 calls, as above. The spread is an assumption."""
GAPS = ((0.0, 0.2), (0.25, 0.69), (0.5, 1.6), (0.75, 8.6), (0.9, 44.0), (0.99, 738.0), (1.0, 3_600.0))
"""Share of calls, and seconds between an answer and the next call of its conversation: tools and people, 783,000 gaps
of coding agents in production (gahow/agentic-kvc, figure f3a). Both ends are assumptions."""
BURST_SHAPE = 0.5
"""Gamma shape of the time between the beginnings of conversations: BurstGPT's generator, arXiv 2401.17644."""
PER_NODE_HOUR = 10.0
"""Conversations that begin in an hour for each node: an assumption, and what the load follows from."""

CRASH_DAYS = 2_048 * 54 / 419
"""Days between unexpected interruptions of a server: 419 in 54 days of 2,048 (Llama 3, arXiv 2407.21783, table 5)."""
CUT_SHARE = 35 / 419
"""Of these, switches and cables: packets are dropped, and nothing refuses."""
RESTART_DAYS = 30.0
"""Days between planned restarts, for a monthly update of macOS: drained first. An assumption."""
DOWN_S = 180.0
"""Seconds until a node serves again: a Mac's start and the load of 20 GB. An assumption."""

REQUEST_S, CHUNK_S = 0.014, 0.00115
"""Processor seconds that a request and a streamed chunk cost one LiteLLM process: docs/performance.md."""
PICK_S, PICK_NODE_S = 0.00009, 0.0000046
"""What the choice of a node adds to a request, and for each node: 0.13, 0.63 and 4.7 ms with 10, 100 and 1,000
deployments, litellm 1.108.14 (litellm.Router.async_get_available_deployment, measured here) with the choice of mlxq's
front (tasks/front/node_choice.py). With LiteLLM's least-busy it is 0.18, 0.72 and 6.5 ms."""
REDIS_COMMANDS, REDIS_COMMANDS_S = 8.7, 52_678.0
"""Commands that a request costs a Redis which two fronts share, counted over 100 requests of tests/support's fleet, and
commands a second of one Redis 7.0.15, redis-benchmark with 16 clients, both measured here."""
REDIS_KEYS = 1_290_000.0
"""Keys a second that one Redis reads: 1,290 MGET/s of 1,000 keys, Redis 7.0.15, redis-benchmark on the busy machine of
docs/performance.md. LiteLLM's least-busy reads the count of every node for every request; mlxq's front does not."""
COMMITS = 6_222.0
"""Commits a second of one SQLite file that is synced at each, 8 writers: measured here. A gateway writes the usage of a
second in one."""


@dataclass(frozen=True)
class Rules:
    """How the front picks a node; the same names as in its configuration."""

    affinity: bool = True
    """A conversation stays on the node that has its prompt, while that node is well."""
    place: str = "any"
    """Where a conversation begins: at the least busy node, of equals "any", one of twice the speed twice as often, or
    the "first" in the configuration; or by "hash", each node by its speed, which needs no memory and no second look."""
    spill: int | None = None
    """Calls that wait at a conversation's node from which on it moves to another; None for never."""
    cooldown_s: float = 5.0
    """How long a node is passed over after it refused or did not answer."""
    connect_s: float = 2.0
    """How long a node that does not even refuse is waited for."""
    refused_s: float = 0.073
    """What a refusal costs until another node is asked: LiteLLM with two nodes, measured."""
    watch_s: float = 10.0
    """After so long a node that does not answer its status is left out until it does."""


RULES = Rules()
"""Those of mlxq's front (tasks/front/plan.py and node_choice.py); a test compares them."""
LITELLM = Rules(place="first")
"""LiteLLM's `least-busy`."""


class Draws:
    """Random numbers of one distribution, drawn once: 16,384 are as good as new ones, and quicker."""

    def __init__(self, rng: random.Random, draw: Callable[[], float]) -> None:
        self._rng, self._all = rng, [draw() for _ in range(1 << 14)]

    def __call__(self) -> float:
        """Return one."""
        return self._all[int(self._rng.random() * 16_384)]

    @property
    def mean(self) -> float:
        """Return the mean of what it gives."""
        return statistics.fmean(self._all)


def lognormal(rng: random.Random, mean: float, sigma: float) -> Callable[[], float]:
    """Return a draw of a lognormal distribution by its mean and its sigma."""
    mu = math.log(mean) - sigma * sigma / 2
    return lambda: rng.lognormvariate(mu, sigma)


def quantiles(rng: random.Random, points: Sequence[tuple[float, float]]) -> Callable[[], float]:
    """Return a draw of the distribution through these (share, value) points, straight in the logarithm between them."""

    def draw() -> float:
        share = rng.random()
        right = next(at for at, (upto, _) in enumerate(points) if upto >= share and at)
        (low, least), (high, most) = points[right - 1], points[right]
        return least * (most / least) ** ((share - low) / (high - low))

    return draw


STEP = 4_096
"""Tokens between the contexts at which a node's speed is looked up."""


@dataclass(frozen=True)
class Speed:
    """How fast one kind of Mac reads and writes."""

    name: str
    read_s: tuple[float, ...]
    """Seconds in which a prompt is read from its beginning, by its length in STEPs."""
    write_s: tuple[float, ...]
    """Seconds a token of an answer takes, by the STEPs before it."""
    kept_tokens: int
    """Tokens of prompts that its memory holds beside one whole window, as mlxq plans it."""
    weight: float
    """Its speed against the others': tokens a second at 32K."""

    def reading(self, upto: int, known: int) -> float:
        """Return the seconds in which tokens `known` to `upto` of a prompt are read."""
        return max(0.0, self._read(upto) - self._read(known))

    def _read(self, tokens: int) -> float:
        at, rest = divmod(min(tokens, WINDOW), STEP)
        until = self.read_s[at]
        return until if not rest else until + (self.read_s[at + 1] - until) * rest / STEP


def speed_of(machine: Machine) -> Speed:
    """Return the speed of one kind of Mac, as the catalog predicts it."""
    model = entries()[MODEL]
    contexts = [step * STEP for step in range(1, WINDOW // STEP + 1)]
    speeds = predict_all(machine, model, QUANT, contexts)
    read = [0.0, *(context / speeds[context].prompt for context in contexts)]
    write = [1 / speeds[contexts[0]].decode, *(1 / speeds[context].decode for context in contexts)]
    spare = budget(machine) - memory(model, QUANT, WINDOW).total
    kept = max(0, spare) * WINDOW // cache_bytes(model, WINDOW)
    rising = tuple(max(read[: at + 1]) for at in range(len(read)))
    return Speed(machine.chip, rising, tuple(write), kept, speeds[32_768].decode)


@dataclass(slots=True, eq=False)
class Conversation:
    """One agent's session."""

    number: int
    calls: int
    prompt: int = FIRST_PROMPT
    node: int = -1
    """Which node has its prompt; -1 before its first call."""
    asked_at: float = 0.0


@dataclass(slots=True, eq=False)
class Node:
    """One Mac."""

    speed: Speed
    life: int = 0
    """Counts its starts: an answer of an earlier life never ends."""
    up: bool = True
    cut: bool = False
    """Its packets are dropped; it refuses nothing."""
    draining: bool = False
    since: float = 0.0
    """When it went away."""
    skipped_until: float = 0.0
    warm: bool = False
    """It has read the agents' system prompt."""
    running: dict[Conversation, tuple[float, float]] = field(default_factory=dict[Conversation, tuple[float, float]])
    """By conversation: when its first token comes, and the tokens a second of its stream."""
    waiting: deque[Conversation] = field(default_factory=deque[Conversation])
    reading_until: float = 0.0
    prompts: OrderedDict[int, int] = field(default_factory=OrderedDict[int, int])
    """Old prompts by conversation, in tokens, the oldest use first."""
    kept: int = 0
    read_s: float = 0.0
    """Seconds in which it read prompts."""


@dataclass
class Figures:
    """What is counted."""

    calls: int = 0
    first_token_s: list[float] = field(default_factory=list[float])
    answer_s: list[float] = field(default_factory=list[float])
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    next_calls: int = 0
    """Calls of a conversation whose node was well."""
    stayed: int = 0
    """Of these, those that went to it."""
    lost: int = 0
    """Answers broken off after their first token, by a node that died."""
    repeated: int = 0
    """Calls asked again elsewhere before their first token."""
    refused: int = 0
    """Connections that were refused."""
    hung: int = 0
    """Connections that were given up after Rules.connect_s."""
    streams: list[float] = field(default_factory=list[float])
    """The largest sum of the streams' tokens a second, by MINUTE_S."""
    asked: list[int] = field(default_factory=list[int])
    """Calls, by MINUTE_S."""
    outages: int = 0
    drains: int = 0


MINUTE_S = 60.0


class Fleet:
    """The simulation: a heap of events in the order of their time."""

    def __init__(self, nodes: int, conversations: int, rules: Rules, *, seed: int = 1, failures: float = 1.0) -> None:
        self.rng = rng = random.Random(seed)
        self.rules, self.failures, self.left, self.ended = rules, failures, conversations, 0
        self.nodes = [Node(speed) for speed in spread(nodes, rng)]
        self.load = [0.0] * nodes
        """Requests at a node; infinite while it is passed over."""
        self.up_to = [*accumulate(node.speed.weight for node in self.nodes)]
        self.events: list[tuple[float, int, Callable[..., None], Any]] = []
        self.order = count()
        self.now = 0.0
        self.figures = Figures()
        self.flow = 0.0
        self.gap = Draws(rng, quantiles(rng, GAPS))
        self.fresh = Draws(rng, lognormal(rng, FRESH, FRESH_SIGMA))
        self.answer = Draws(rng, lognormal(rng, ANSWER, ANSWER_SIGMA))
        self.calls = Draws(rng, lognormal(rng, CALLS, CALLS_SIGMA))
        self.begin_s = 3600 / (nodes * PER_NODE_HOUR)
        self.numbers = count()

    def run(self) -> Figures:
        """Run until every conversation has ended."""
        self.at(0.0, self.begin, None)
        for number in range(len(self.nodes)):
            self.plan_outage(number)
        events, pop = self.events, heapq.heappop
        while self.left and events:
            self.now, _, happen, subject = pop(events)
            happen(subject)
        return self.figures

    def at(self, seconds: float, happen: Callable[..., None], subject: Any) -> None:
        """Have something happen at a time."""
        heapq.heappush(self.events, (seconds, next(self.order), happen, subject))

    # Conversations

    def begin(self, _: None) -> None:
        """Begin a conversation, and plan the next."""
        number = next(self.numbers)
        calls = max(1, min(MOST_CALLS, round(self.calls())))
        self.call(Conversation(number, calls))
        if number + 1 < self.left + self.ended:
            self.at(self.now + self.rng.gammavariate(BURST_SHAPE, self.begin_s / BURST_SHAPE), self.begin, None)

    def call(self, conversation: Conversation) -> None:
        """Send the next call of a conversation to a node."""
        conversation.asked_at = self.now
        figures = self.figures
        figures.calls += 1
        self.count_minute()
        home = conversation.node
        if home >= 0 and self.is_well(home):
            figures.next_calls += 1
            chosen = self.pick(conversation)
            figures.stayed += chosen == home
        else:
            chosen = self.pick(conversation)
        self.send(conversation, chosen)

    def is_well(self, number: int) -> bool:
        """Return whether a node is up and takes requests."""
        node = self.nodes[number]
        return node.up and not node.draining

    def pick(self, conversation: Conversation) -> int:
        """Return the node by the front's rules: where the prompt is, else where the least is at work."""
        home, rules, load = conversation.node, self.rules, self.load
        stays = rules.affinity and home >= 0 and load[home] != math.inf
        if stays and (rules.spill is None or len(self.nodes[home].waiting) < rules.spill):
            return home
        if rules.place == "hash":
            return self.by_hash()
        least = min(load)
        if rules.place == "first":
            return load.index(least)
        equal = [number for number, at in enumerate(load) if at == least]
        return self.rng.choices(equal, [self.nodes[number].speed.weight for number in equal])[0]

    def by_hash(self) -> int:
        """Return a node by its speed, of those that are not passed over: what a rendezvous hash gives."""
        while True:
            number = bisect.bisect(self.up_to, self.rng.random() * self.up_to[-1])
            if self.load[number] != math.inf:
                return number

    def send(self, conversation: Conversation, number: int) -> None:
        """Ask a node; where it is away, the next is asked after what that cost."""
        node = self.nodes[number]
        if node.up:
            self.arrive(conversation, number)
            return
        self.skip(number)
        if node.cut:
            self.figures.hung += 1
            self.at(self.now + self.rules.connect_s, self.again, conversation)
        else:
            self.figures.refused += 1
            self.at(self.now + self.rules.refused_s, self.again, conversation)

    def again(self, conversation: Conversation) -> None:
        """Ask another node."""
        self.send(conversation, self.pick(conversation))

    def skip(self, number: int) -> None:
        """Pass a node over for the cooldown; once the watch has seen that it is away, until it is back."""
        node = self.nodes[number]
        self.load[number] = math.inf
        if self.now - node.since >= self.rules.watch_s:
            return
        node.skipped_until = self.now + self.rules.cooldown_s
        self.at(node.skipped_until, self.consider, number)

    def consider(self, number: int) -> None:
        """Take a node back after its cooldown, unless the watch knows that it is away."""
        node = self.nodes[number]
        if node.draining or self.now < node.skipped_until:
            return
        if node.up or self.now - node.since < self.rules.watch_s:
            self.weigh(number)

    def weigh(self, number: int) -> None:
        """Write down how much is at a node."""
        node = self.nodes[number]
        self.load[number] = float(len(node.running) + len(node.waiting))

    # Nodes

    def arrive(self, conversation: Conversation, number: int) -> None:
        """Start a call at its node, or have it wait for a slot."""
        node = self.nodes[number]
        conversation.node = number
        if len(node.running) < SLOTS:
            self.start(conversation, number)
        else:
            node.waiting.append(conversation)
        if self.load[number] != math.inf:
            self.weigh(number)

    def start(self, conversation: Conversation, number: int) -> None:
        """Read what is new in the prompt, after the prompts that are being read, and write the answer."""
        node, speed = self.nodes[number], self.nodes[number].speed
        prompt = conversation.prompt
        known = min(prompt, node.prompts.get(conversation.number, SYSTEM_TOKENS if node.warm else 0))
        tokens = max(1, round(self.answer()))
        read_at = max(self.now, node.reading_until)
        first = node.reading_until = read_at + speed.reading(prompt, known)
        together = len(node.running) + 1
        wrote = first + tokens * speed.write_s[min(prompt, WINDOW) // STEP] * together ** (1 - BATCH_EXPONENT)
        rate = tokens / (wrote - self.now)
        self.flow += rate
        node.running[conversation] = first, rate
        node.warm = True
        node.read_s += first - read_at
        self.figures.prompt_tokens += prompt
        self.figures.cached_tokens += known
        self.figures.answer_tokens += tokens
        self.at(wrote, self.end, (conversation, number, node.life, tokens))

    def end(self, ended: tuple[Conversation, int, int, int]) -> None:
        """End an answer: keep its prompt, let the next in, and plan the conversation's next call."""
        conversation, number, life, tokens = ended
        node = self.nodes[number]
        if life != node.life:
            return
        first, rate = node.running.pop(conversation)
        self.flow -= rate
        self.figures.first_token_s.append(first - conversation.asked_at)
        self.figures.answer_s.append(self.now - conversation.asked_at)
        conversation.prompt += tokens
        self.keep(node, conversation)
        if node.waiting:
            self.start(node.waiting.popleft(), number)
        if self.load[number] != math.inf:
            self.weigh(number)
        self.proceed(conversation)

    def keep(self, node: Node, conversation: Conversation) -> None:
        """Keep a prompt with its answer, and drop the oldest where memory does not hold all."""
        prompts = node.prompts
        node.kept += conversation.prompt - prompts.pop(conversation.number, 0)
        prompts[conversation.number] = conversation.prompt
        while node.kept > node.speed.kept_tokens and prompts:
            node.kept -= prompts.popitem(last=False)[1]

    def proceed(self, conversation: Conversation) -> None:
        """Plan the next call of a conversation, or end it. At the window its agent starts over with a summary."""
        conversation.calls -= 1
        if conversation.calls <= 0:
            self.left -= 1
            self.ended += 1
            return
        conversation.prompt += round(self.fresh())
        if conversation.prompt > WINDOW - 8 * ANSWER:
            conversation.prompt = FIRST_PROMPT + 2 * FRESH
            self.forget(conversation)
        self.at(self.now + self.gap(), self.call, conversation)

    def forget(self, conversation: Conversation) -> None:
        """Forget a prompt that its agent has cut; the system prompt stays known."""
        node = self.nodes[conversation.node]
        node.kept -= node.prompts.pop(conversation.number, 0)

    # Failures

    def plan_outage(self, number: int) -> None:
        """Plan the next crash and the next planned restart of a node."""
        day = 86_400 / self.failures
        self.at(self.now + self.rng.expovariate(1 / (CRASH_DAYS * day)), self.crash, number)
        self.at(self.now + self.rng.expovariate(1 / (RESTART_DAYS * day)), self.drain, number)

    def crash(self, number: int) -> None:
        """Let a node die, or its cable be cut, and plan its next crash."""
        node = self.nodes[number]
        if node.up and not node.draining:
            self.figures.outages += 1
            self.leave(number, cut=self.rng.random() < CUT_SHARE)
        self.at(self.now + self.rng.expovariate(self.failures / (CRASH_DAYS * 86_400)), self.crash, number)

    def leave(self, number: int, *, cut: bool) -> None:
        """Take a node away for DOWN_S; what it answers is lost, what has no token yet is asked elsewhere."""
        node = self.nodes[number]
        orphans = [*node.running.items()]
        waiting = [*node.waiting]
        node.up, node.cut, node.since = False, cut, self.now
        node.life += 1
        node.running.clear()
        node.waiting.clear()
        node.prompts.clear()
        node.kept, node.warm, node.reading_until = 0, False, 0.0
        wait = self.rules.connect_s if cut else self.rules.refused_s
        self.at(self.now + self.rules.watch_s, self.leave_out, number)
        self.at(self.now + DOWN_S, self.come_back, number)
        for conversation, (first, rate) in orphans:
            self.flow -= rate
            if first <= self.now:
                self.figures.lost += 1
                self.proceed(conversation)
            else:
                waiting.append(conversation)
        for conversation in waiting:
            self.figures.repeated += 1
            self.at(self.now + wait, self.again, conversation)
        self.weigh(number)
        if waiting:
            self.skip(number)

    def leave_out(self, number: int) -> None:
        """Pass over a node whose status the watch could not read, until it is back."""
        if not self.nodes[number].up:
            self.load[number] = math.inf

    def drain(self, number: int) -> None:
        """Restart a node as planned: it takes no new request and goes after its last answer."""
        node = self.nodes[number]
        if node.up and not node.draining:
            self.figures.drains += 1
            node.draining = True
            self.load[number] = math.inf
            self.go_when_empty(number)
        self.at(self.now + self.rng.expovariate(self.failures / (RESTART_DAYS * 86_400)), self.drain, number)

    def go_when_empty(self, number: int) -> None:
        """Restart a node once its last answer has ended."""
        node = self.nodes[number]
        if node.running or node.waiting:
            self.at(self.now + 1.0, self.go_when_empty, number)
            return
        self.leave(number, cut=False)
        self.load[number] = math.inf

    def come_back(self, number: int) -> None:
        """Let a node serve again; its memory of prompts is empty."""
        node = self.nodes[number]
        node.up, node.cut, node.draining, node.skipped_until = True, False, False, 0.0
        self.weigh(number)

    def count_minute(self) -> None:
        """Count a call and the tokens that stream, in its minute."""
        minute = int(self.now // MINUTE_S)
        figures = self.figures
        while len(figures.asked) <= minute:
            figures.asked.append(0)
            figures.streams.append(0.0)
        figures.asked[minute] += 1
        figures.streams[minute] = max(figures.streams[minute], self.flow)


def spread(nodes: int, rng: random.Random) -> list[Speed]:
    """Return the speed of each node, in a random order that has every kind of MIX by its share."""
    kinds = [speed_of(mac(next(one for one in bins()[chip] if one.gpu == gpu), gb)) for chip, gpu, gb, _ in MIX]
    wanted = rng.choices(kinds, weights=[share for *_, share in MIX], k=nodes)
    whole = [kind for kind, (*_, share) in zip(kinds, MIX, strict=True) for _ in range(round(share * nodes))]
    found = (whole + wanted)[:nodes]
    rng.shuffle(found)
    return found


@dataclass(frozen=True)
class Summary:
    """What one run says. Times in seconds, shares from 0 to 1."""

    nodes: int
    conversations: int
    calls: int
    hours: float
    busy: float
    first_p50: float
    first_p95: float
    first_p99: float
    first_p999: float
    answer_p50: float
    answer_p99: float
    cached: float
    stayed: float
    outages: int
    drains: int
    lost: int
    repeated: int
    refused: int
    hung: int
    requests_mean: float
    requests_peak: float
    chunks_mean: float
    chunks_peak: float
    took_s: float


def simulate(nodes: int, conversations: int, rules: Rules = RULES, seed: int = 1, failures: float = 1.0) -> Summary:
    """Run one fleet and return its figures. `failures`: how many times as often as published nodes fail."""
    begun = time.process_time()
    fleet = Fleet(nodes, conversations, rules, seed=seed, failures=failures)
    figures = fleet.run()
    first, answer = sorted(figures.first_token_s), sorted(figures.answer_s)
    seconds = conversations * fleet.begin_s
    settled = slice(len(figures.asked) // 10, max(1, int(seconds // MINUTE_S)))
    asked, streams = figures.asked[settled] or figures.asked, figures.streams[settled] or figures.streams
    return Summary(
        nodes=nodes,
        conversations=conversations,
        calls=figures.calls,
        hours=fleet.now / 3600,
        busy=sum(node.read_s for node in fleet.nodes) / (seconds * nodes),
        first_p50=percentile(first, 0.5),
        first_p95=percentile(first, 0.95),
        first_p99=percentile(first, 0.99),
        first_p999=percentile(first, 0.999),
        answer_p50=percentile(answer, 0.5),
        answer_p99=percentile(answer, 0.99),
        cached=figures.cached_tokens / max(1, figures.prompt_tokens),
        stayed=figures.stayed / max(1, figures.next_calls),
        outages=figures.outages,
        drains=figures.drains,
        lost=figures.lost,
        repeated=figures.repeated,
        refused=figures.refused,
        hung=figures.hung,
        requests_mean=statistics.fmean(asked) / MINUTE_S,
        requests_peak=max(asked) / MINUTE_S,
        chunks_mean=statistics.fmean(streams),
        chunks_peak=max(streams),
        took_s=time.process_time() - begun,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of an ordered sequence is; 0 of an empty one."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def front(summary: Summary) -> dict[str, float]:
    """Return how many times over one front, one Redis and one file are full at the busiest minute of a run.

    The front's limit is one core: LiteLLM runs in one. A file is that of a front which counts usage for each request.
    """
    picking = PICK_S + PICK_NODE_S * summary.nodes
    cores = summary.requests_peak * (REQUEST_S + picking) + summary.chunks_peak * CHUNK_S
    return {
        "front cores": cores,
        "front cores, without streams": summary.requests_peak * (REQUEST_S + picking),
        "Redis": summary.requests_peak * REDIS_COMMANDS / REDIS_COMMANDS_S,
        "Redis, with least-busy": summary.requests_peak * summary.nodes / REDIS_KEYS,
        "one file": summary.requests_peak / COMMITS,
    }


ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("conversations, calls", lambda run: f"{run.conversations:,}, {run.calls:,}"),
    ("reading, share of the time", lambda run: f"{run.busy:.0%}"),
    ("first token p50, p95, s", lambda run: f"{run.first_p50:.1f}, {run.first_p95:.1f}"),
    ("first token p99, p99.9, s", lambda run: f"{run.first_p99:.0f}, {run.first_p999:.0f}"),
    ("whole answer p50, p99, s", lambda run: f"{run.answer_p50:.1f}, {run.answer_p99:.0f}"),
    ("prompt tokens not read again", lambda run: f"{run.cached:.1%}"),
    ("stayed on a node that was well", lambda run: f"{run.stayed:.2%}"),
    ("outages, planned restarts", lambda run: f"{run.outages}, {run.drains}"),
    ("answers broken off", lambda run: f"{run.lost}"),
    ("asked again elsewhere", lambda run: f"{run.repeated}"),
    ("connections refused, given up after 2 s", lambda run: f"{run.refused}, {run.hung}"),
    ("requests/s, mean and busiest minute", lambda run: f"{run.requests_mean:.1f}, {run.requests_peak:.1f}"),
    (
        "streamed chunks/s, the minutes' peaks: mean, highest",
        lambda run: f"{run.chunks_mean:,.0f}, {run.chunks_peak:,.0f}",
    ),
    ("LiteLLM processes that this fills", lambda run: f"{front(run)['front cores']:.1f}"),
    ("the same, without the chunks", lambda run: f"{front(run)['front cores, without streams']:.2f}"),
    ("share of one Redis", lambda run: f"{front(run)['Redis']:.2%}"),
    ("what LiteLLM's least-busy adds to it", lambda run: f"{front(run)['Redis, with least-busy']:.2%}"),
    ("share of one file's commits", lambda run: f"{front(run)['one file']:.2%}"),
    ("processor time of the simulation, s", lambda run: f"{run.took_s:.0f}"),
)


def show(runs: Sequence[tuple[str, Summary]]) -> None:
    """Print runs side by side."""
    table(["", *(name for name, _ in runs)], [[name, *(say(run) for _, run in runs)] for name, say in ROWS])


CHOICES: tuple[tuple[str, Rules, float], ...] = (
    ("mlxq's front", RULES, 1),
    ("no affinity", Rules(affinity=False), 1),
    ("LiteLLM's least-busy", LITELLM, 1),
    ("by hash", Rules(place="hash"), 1),
    ("moves when 2 wait", Rules(spill=2), 1),
    ("100 x the failures", RULES, 100),
)
"""Name, rules and failures of what is compared on 100 nodes."""


def main() -> None:
    """Print a fleet by its size, and then what the rules are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, help="one fleet of this size alone")
    parser.add_argument("--conversations", type=int, help="how many it has (default: 100 a node)")
    parser.add_argument("--affinity", choices=("on", "off"), default="on")
    parser.add_argument("--place", choices=("first", "any", "hash"), default=RULES.place)
    parser.add_argument("--failures", type=float, default=1.0, help="how many times as often as published nodes fail")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    wanted = parser.parse_args()
    rules = Rules(affinity=wanted.affinity == "on", place=wanted.place)
    sizes = (wanted.nodes,) if wanted.nodes else (10, 100, 1_000)
    runs = [
        (f"{nodes:,} nodes", simulate(nodes, wanted.conversations or 100 * nodes, rules, wanted.seed, wanted.failures))
        for nodes in sizes
    ]
    rivals = [] if wanted.nodes else [(name, simulate(100, 10_000, has, 1, fails)) for name, has, fails in CHOICES]
    if wanted.json:
        print(json.dumps({name: asdict(run) | front(run) for name, run in runs + rivals}))
        return
    show(runs)
    if rivals:
        print()
        show(rivals)


if __name__ == "__main__":
    main()
