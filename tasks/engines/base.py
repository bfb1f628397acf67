"""What an engine is: all that mlxq has to know of a program that serves one model over HTTP.

An adapter is data and pure functions. It says how a model is served (command line and environment), where the engine
is asked for its status, how it drops its cache, how long it may be silent, and what its last words mean. Nothing
outside tasks/engines knows a flag, a route, a log marker or a quirk of any engine; what an engine can do is in
catalog/engines.yaml.

An adapter's program keeps no prompt on disk at its end once the file `no-store` is in its folder below the home's
`cache/`, which it deletes as it starts: the gateway makes it before the first request of a key whose prompts stay in
memory. It ends within DRAIN_S after SIGTERM, ends with code 0 after its last answer on SIGUSR2, takes the
key from its environment, serves on 127.0.0.1 alone and sends nothing anywhere. tests/contract/test_engine_adapters.py
holds every adapter to this with the real engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from catalog.engines import ModelKind
from state.classes import dataclass
from state.stack import Engine
from tasks.plan import health, request_stats
from tasks.plan.exit_causes import CauseRule
from tasks.plan.health import EngineStatus, Limits
from tasks.plan.request_stats import EngineRequest

MIB = 2**20
GIB = 2**30

DRAIN_S = 4
"""Seconds a running answer has left after SIGTERM. The engine's own end takes up to three more on a busy machine, and
mlxq kills at 10."""
LARGEST_BUFFER_CACHE = 2 * GIB
ENTRIES, SHORT_PROMPT = 2, 1024
"""A cache too small for this number of prompts of this length is left out."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""What keeps every engine from asking anything of anyone."""


@dataclass(frozen=True)
class ModelFacts:
    """What an engine must know of the weights in a folder, besides what the stack says."""

    kind: ModelKind = ModelKind.ATTENTION
    thinks: bool = False
    """Whether the chat template knows `enable_thinking`."""
    keeps_thinking: bool = False
    """Whether the chat template knows `preserve_thinking`."""
    reads_thoughts: bool = False
    """Whether the chat template takes the thoughts of an earlier turn in <think> at the start of the turn's text."""
    efforts: tuple[str, ...] = ()
    """The words that the chat template knows for `reasoning_effort`, from the least on."""
    state_bytes: int = 0
    """Bytes of the states of fixed size that each entry of a prompt cache holds."""
    draft_heads: bool = False
    """Whether the weights hold heads that guess the tokens after the next one (multi-token prediction)."""
    token_bytes: int = 0
    """Bytes that each token of a prompt adds to its entry; 0 where that is not known."""

    def entry_bytes(self, tokens: int) -> int:
        """Return the bytes of the cache entry of a prompt of `tokens` tokens."""
        return self.state_bytes + self.token_bytes * tokens


@dataclass(frozen=True)
class Installation:
    """One version of an engine on this machine."""

    engine: str
    version: str
    python: str
    """Absolute path of the interpreter that runs it."""

    @property
    def name(self) -> str:
        """Return what people read: "rapid-mlx 0.16.10"."""
        return f"{self.engine} {self.version}"


@dataclass(frozen=True)
class Served:
    """One model as it is to be served: all that a command line and an environment follow from."""

    engine: Engine
    facts: ModelFacts
    home: str
    """The mlxq home."""
    key: str
    """The key that the engine asks for."""
    backend: str
    """metal, cpu or cuda."""
    tuning: str = ""
    """What makes its answers faster, by the adapter's name for it; empty for nothing."""
    keeps_prompts: bool = True
    """Whether it may write old prompts to disk as it ends, to have them at its next start."""
    ranks: int = 1
    """Processes that the model is split over."""


class PatienceWith(Protocol):
    """How long an engine may be silent, with a model that takes images and without."""

    def __call__(self, *, vision: bool) -> Limits:
        """Return the limits."""
        ...


def no_tunings(_: ModelFacts) -> Mapping[str, Sequence[str]]:
    """Return what an engine offers that has nothing to try."""
    return {}


@dataclass(frozen=True)
class Adapter:
    """One adapter."""

    name: str
    argv: Callable[[Served, Installation], list[str]]
    """The command line; it holds no secret."""
    environment: Callable[[Served], dict[str, str]]
    """What the engine's environment holds besides what every child of mlxq has; secrets included."""
    rules: Sequence[CauseRule]
    """What its last words mean; the first that applies is the cause."""
    purge: tuple[str, str]
    """Method and path that have it drop its cache of old prompts."""
    limits: PatienceWith
    """How long it may be silent."""
    list_parsers: str
    """A Python program that prints two JSON lists, of tool parsers and of reasoning parsers."""
    tunings: Callable[[ModelFacts], Mapping[str, Sequence[str]]] = no_tunings
    """What may make answers faster with a model: name -> its flags. None is used before it was measured here."""
    status: str = "/v1/status"
    """Path of what it says of itself."""
    read_status: Callable[[Any], EngineStatus] = health.read_status
    read_requests: Callable[[Any], list[EngineRequest]] = request_stats.read_requests
    tool_parser: Callable[[str | None], str | None] = lambda name: name
    """The catalog's name of a tool parser -> the engine's own; None where it has none."""
    reasoning_parser: Callable[[str | None], str | None] = lambda name: name
    shortest_request: Callable[[str], tuple[str, dict[str, Any]]] | None = None
    """Path and body of the shortest request, by the engine's name; None for an engine of chats, asked for a token."""
    environment_secrets: frozenset[str] = frozenset()
    """Names of its variables that hold a secret."""


SMALL_HEAP = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Without a GPU, MLX's arrays come from glibc's heap, which raises both thresholds by itself and then keeps what was
freed. With its own first values, fixed, an engine takes 20 to 30 MB less."""


def buffer_cache(served: Served) -> dict[str, str]:
    """Return the setting that bounds the freed buffers which MLX keeps: an eighth of the engine's memory."""
    return {"MLX_BUFFER_CACHE_LIMIT": str(min(LARGEST_BUFFER_CACHE, served.engine.memory_bytes // 8))}


def backend(served: Served) -> dict[str, str]:
    """Return MLX's settings: on the CPU fused kernels cost a compiler run each at their first use."""
    return {"MLX_DISABLE_COMPILE": "1", **SMALL_HEAP} if served.backend == "cpu" else buffer_cache(served)


def cache_bytes(served: Served, *, reuses: bool) -> int:
    """Return the bytes for old prompts: none where they cannot be reused, or where two entries do not fit.

    An engine refuses an entry that is larger than its whole cache, and a growing conversation needs the entry it
    extends beside the one it makes.
    """
    engine = served.engine
    least = ENTRIES * served.facts.entry_bytes(min(engine.context, SHORT_PROMPT))
    return engine.cache_bytes if reuses and engine.cache_bytes >= max(MIB, least) else 0
