"""What a node says of itself, read by an allow-list, and what that means. Pure: documents in, changes out.

A node belongs to the fleet, and still what it says is checked: names that could not be names, numbers that are none and
texts with control characters come no further than this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from state.fleet import Node, ServedModel

PROTOCOL = 1
"""The number of this version's fleet protocol. Another number is refused in words; another version of mlxq is not."""
LOST_AFTER = 2
"""Looks in a row without an answer after which a node is away: one lost packet is no outage."""
MOST_MODELS = 500
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+#-]{0,127}")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]")
LONGEST_TEXT = 300

Failure = Literal["away", "other_authority", "refused", "not_fleet"]
"""Why a look brought no status: nothing answered, another machine did, the key was refused, no fleet is known there."""


@dataclass(frozen=True)
class NodeStatus:
    """What a node says of itself."""

    name: str
    version: str
    protocol: int = PROTOCOL
    serves: Mapping[str, ServedModel] = field(default_factory=dict[str, ServedModel])
    running: int = 0
    """Requests that it answers now."""
    problem: str | None = None
    """What is wrong with its services, in its own words."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"serves": {name: asdict(served) for name, served in self.serves.items()}}


@dataclass(frozen=True)
class Look:
    """How one look at a node went."""

    address: str
    status: NodeStatus | None = None
    failure: Failure | None = None
    words: str = ""
    """Why there is no status."""
    listed: frozenset[str] | None = None
    """The names that it has, by its list of models and by asking again for what was missing; None where not asked."""


@dataclass(frozen=True)
class Judgement:
    """What a look changes."""

    changes: Mapping[str, Any]
    """Fields of the node."""
    event: Literal["node_lost", "node_returned"] | None = None
    cause: str = ""


def read_status(document: Any) -> NodeStatus:
    """Return what a node says of itself. Raises ValueError for what is no status."""
    rows = mapping(document)
    serves = {
        name: served
        for name, row in list(mapping(rows.get("serves", {})).items())[:MOST_MODELS]
        if (served := _served(name, row))
    }
    problem = rows.get("problem")
    return NodeStatus(
        name=str(rows.get("name", ""))[:40],
        version=version(rows.get("version")),
        protocol=_count(rows.get("protocol")),
        serves=serves,
        running=_count(rows.get("running", 0)),
        problem=printable(str(problem)) if problem else None,
    )


def mapping(value: Any) -> dict[str, Any]:
    """Return an object of a document. Raises ValueError for what is none."""
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004 (one kind of error for what another machine sends)
    return {str(name): entry for name, entry in cast("dict[Any, Any]", value).items()}


def _served(name: str, row: Any) -> ServedModel | None:
    """Return what is served under a name; None for a name that none can be."""
    values = mapping(row)
    model = str(values.get("model", name))
    if not (MODEL.fullmatch(name) and MODEL.fullmatch(model)):
        return None
    speed = values.get("decode_tps")
    decode_tps = float(speed) if isinstance(speed, int | float) and 0 < speed < 1e6 else None  # noqa: PLR2004 (no engine makes a million tokens/s)
    return ServedModel(model, _count(values.get("context", 0)), max(1, _count(values.get("slots", 1))), decode_tps)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError(f"no count: {value!r:.40}")
    return value


def version(text: Any) -> str:
    """Return a version that another machine says, empty where it can be none."""
    return text if isinstance(text, str) and _VERSION.fullmatch(text) else ""


def printable(text: str) -> str:
    """Return a text of another machine as it may be shown on a terminal."""
    clean = _UNPRINTABLE.sub(" ", text)
    return clean if len(clean) <= LONGEST_TEXT else f"{clean[: LONGEST_TEXT - 1]}…"


def judge(node: Node, look: Look, failures: int, now: float) -> Judgement:
    """Return what a look changes of a node. `failures`: looks before this one, in a row, that brought no status."""
    if look.status is None:
        return _judge_failure(node, look, failures)
    status = look.status
    if status.protocol != PROTOCOL:
        return _judge_failure(node, Look(look.address, failure="not_fleet", words=apart(status)), LOST_AFTER)
    missing = tuple(name for name in node.missing if name in status.serves)
    if look.listed is not None:
        missing = tuple(sorted(status.serves.keys() - look.listed))
    changes = {
        "address": look.address,
        "serves": status.serves,
        "missing": missing,
        "running": status.running,
        "version": status.version,
        "seen_at": now,
        "problem": lies(missing) or status.problem,
    }
    returned = is_lost(node)
    return Judgement(changes, "node_returned" if returned else None)


def _judge_failure(node: Node, look: Look, failures: int) -> Judgement:
    """Return what it changes that there was no status: nothing at the first time, and one event an outage."""
    if look.failure == "away" and failures + 1 < LOST_AFTER:
        return Judgement({})
    changes: dict[str, Any] = {"problem": f"{LOST}{look.words}", "running": 0}
    if look.failure != "away":
        changes |= {"serves": {}}
    return Judgement(changes, None if is_lost(node) else "node_lost", look.words)


LOST = "away: "
"""How the problem of a node begins that cannot be asked for anything."""


def is_lost(node: Node) -> bool:
    """Return whether a node cannot be asked for anything."""
    return (node.problem or "").startswith(LOST)


def lies(missing: tuple[str, ...]) -> str | None:
    """Return the problem of a node that does not have what it says it serves."""
    if not missing:
        return None
    return f"says that it serves {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}, and answers 404"  # noqa: PLR2004 (enough to see which)


def apart(status: NodeStatus) -> str:
    """Return in words that a node's protocol is another one."""
    older = "it" if status.protocol < PROTOCOL else "this node"
    return (
        f"it runs mlxq {status.version or 'of an unknown version'} with fleet protocol {status.protocol}, and this node"
        f" knows {PROTOCOL}; upgrade {older}"
    )


# ---------------------------------------------------------------- servers of OpenAI's API

SLOTS = 8
"""Requests that a server is taken to answer side by side where it does not say: vLLM's default is far above."""


def openai_model(name: str, row: Any) -> ServedModel:
    """Return a model that a server of OpenAI's API lists; vLLM says its window as max_model_len."""
    values = mapping(row)
    window = values.get("max_model_len") or values.get("context_length") or 0
    return ServedModel(name, window if isinstance(window, int) and 0 <= window < 2**40 else 0, SLOTS)


def with_groups(before: Mapping[str, ServedModel], served: Mapping[str, ServedModel]) -> dict[str, ServedModel]:
    """Return what is served, with the groups that were given to models which are still there."""
    names = {name: entry for name, entry in served.items() if MODEL.fullmatch(name)}
    groups = {
        name: names[entry.model] for name, entry in before.items() if name != entry.model and entry.model in names
    }
    return names | groups
