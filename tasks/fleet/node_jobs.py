"""The jobs that a node of the fleet may have this one do: an allow-list, each with the arguments that it takes.

They are enqueued in this node's own ledger. No huey: the gateway does it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from catalog.intent import INTENTS, TIERS
from catalog.problems import UnknownModel
from state import fleet, job, ledger, service, stack, weights
from state.db import Database, atomic
from state.errors import Busy, NotFound, NotRunning, UsageProblem
from state.job import Job, NewJob, get, of_chain
from tasks import recommend, stack_jobs, tier_requests
from tasks.kinds import new
from tasks.on_demand import requests

MOST_NAMES = 20
LONGEST_NAME = 200
SHOWN = 50
"""Jobs that a list has at most."""
QUEUED = "queued"


@dataclass(frozen=True)
class NodeCommand:
    """One command."""

    jobs: Callable[[Database, Mapping[str, Any]], Sequence[NewJob | int]]
    """Returns what is to be enqueued, and the numbers of jobs that are enqueued already."""
    takes: Mapping[str, type]
    """Arguments with their types; a list has strings, a dict has a string for each of some tiers."""
    required: frozenset[str] = frozenset()


@atomic
def enqueue(db: Database, key: str, idempotency_key: str, command: str, args: Mapping[str, Any]) -> list[int]:
    """Enqueue the jobs of a command that the key `key` asks for, once for each idempotency key; return their numbers.

    Raises UsageProblem for a command or an argument that is not in the list, and as the command does.
    """
    checked = check(command, args)
    digest = hashlib.sha256(repr((command, sorted(checked.items()))).encode()).hexdigest()
    before = fleet.answered(db, key, idempotency_key, digest)
    if before is not None:
        return before
    wanted = COMMANDS[command].jobs(db, checked)
    fresh = [entry for entry in wanted if isinstance(entry, NewJob)]
    numbers = [entry for entry in wanted if isinstance(entry, int)]
    numbers += [number for number, _ in ledger.enqueue_all(db, fresh).values()] if fresh else []
    fleet.answer(db, key, idempotency_key, digest, numbers)
    return numbers


def check(command: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command, if it takes them. Raises UsageProblem."""
    if command not in COMMANDS:
        raise UsageProblem(f"A node cannot be asked for {command[:40]!r}; it can for {', '.join(COMMANDS)}.")
    entry = COMMANDS[command]
    for name in sorted(args.keys() | entry.required):
        if name not in entry.takes or name not in args or not _fits(args[name], entry.takes[name]):
            raise UsageProblem(f"{command} on a node does not take this as `{name[:40]}`.")
    return dict(args)


def _fits(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and len(value) <= MOST_NAMES and all(_fits(entry, str) for entry in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if kind is dict:
        rows = cast("dict[Any, Any]", value) if isinstance(value, dict) else {None: None}
        return rows.keys() <= set(TIERS) and all(_fits(entry, str) for entry in rows.values())
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, kind) and len(str(value)) <= LONGEST_NAME


def listing(db: Database, key: str) -> list[Job]:
    """Return the newest jobs that a key asked for, and those that came of them, the newest first."""
    jobs = [row for chain in _chains(db, key) for row in of_chain(db, chain)]
    return sorted(jobs, key=lambda row: -row.id)[:SHOWN]


def find(db: Database, key: str, number: int) -> list[Job]:
    """Return a job of a key, with what came of it. Raises NotFound for one that another asked for."""
    if not _exists(db, number) or (chain := get(db, number).chain) not in _chains(db, key):
        raise NotFound(f"There is no job {number} of this fleet here.")
    return of_chain(db, chain)


def _chains(db: Database, key: str) -> list[int]:
    """Return the chains of the jobs that a key asked for."""
    return list(dict.fromkeys(get(db, number).chain for number in fleet.asked(db, key) if _exists(db, number)))


def document(row: Job) -> dict[str, Any]:
    """Return a job as another node is shown it."""
    return {name: value for name, value in asdict(row).items() if name not in {"owner", "unique_key"}}


def _exists(db: Database, number: int) -> bool:
    return db.value("SELECT count(*) FROM jobs WHERE id = ?", (number,)) > 0


# ---------------------------------------------------------------- commands


def _pull(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    """Return the download of a model of the catalog, or a repository on the Hub: no folder, and no other site."""
    name = args["model"]
    try:
        source = recommend.source_named(db.home, name, args.get("quant"))
    except UnknownModel as problem:
        raise NotFound(f"There is no model {name!r}.") from problem
    pulled = new("pull", {"source": source, "revision": None, "force": args.get("force", False), "code": False})
    measured = [new("bench", {"target": source, "save": True}, needs=["pull"])] if args.get("bench") else []
    return [pulled, *measured]


def _folders(db: Database, name: str) -> list[str]:
    """Return the folders of the weights that a name means. Raises NotFound."""
    wanted = {name} | recommend.sources_named(db.home, name)
    folders = [row.folder for row in weights.listing(db) if wanted & {row.source, Path(row.folder).name}]
    if not folders:
        raise NotFound(f"No weights of {name} are here.")
    return folders


def _rm(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    return [
        new("remove_weights", {"folder": folder, "force": args.get("force", False)}, label=Path(folder).name)
        for folder in _folders(db, args["model"])
    ]


def _verify(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    folders = _folders(db, args["model"]) if args.get("model") else [row.folder for row in weights.listing(db)]
    if not folders:
        raise NotFound("There are no weights to check.")
    return [new("verify_weights", {"folder": folder}, label=Path(folder).name) for folder in folders]


def _bench(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    target = args["target"]
    if target not in {tier.name for tier in stack.tiers(db)}:
        target = _folders(db, target)[0]
    return [new("bench", {"target": target, "save": args.get("save", False)})]


def _load(db: Database, args: Mapping[str, Any]) -> list[int]:
    return [requests.load(db, requests.find(db, args["model"]))]


def _unload(db: Database, args: Mapping[str, Any]) -> list[int]:
    return [requests.unload(db, requests.find(db, args["model"]))]


def _names(db: Database, args: Mapping[str, Any]) -> list[str]:
    """Return the tiers and engines that are named. Raises NotFound: the gateway and the page are no one else's."""
    names: list[str] = args.get("names", [])
    existing = [*(tier.name for tier in stack.tiers(db)), *(engine.name for engine in stack.retrieval(db))]
    for name in names:
        if name not in existing:
            raise NotFound(f"There is no tier {name!r} here; there is: {', '.join(existing)}.")
    return names or existing


def _up(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    return stack_jobs.start_named(db, _names(db, args))


def _down(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    effects = tier_requests.stop(db, _names(db, args))
    for name in effects.services:
        ledger.request_down(db, name)
    rows = {row.name: row for row in service.listing(db)}
    drains = args.get("drain", False)
    for name in effects.services if not drains else []:
        tier_requests.cancel_drain(db, name)
    kind = "drain" if drains else "stop"
    jobs = [new(kind, {"service": name}, label=name) for name in effects.services if name in rows]
    return [*jobs, *(tier_requests.reroute(db) if effects.reroutes else [])]


def _restart(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    wanted = stack.services(stack.tiers(db), _names(db, args))
    names = [row.name for row in service.listing(db) if row.desired == "up" and row.name in wanted]
    if not names:
        raise NotRunning("Nothing of this should run.")
    return stack_jobs.restart_in_turn(names)


def _stack(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    """Return the jobs that make these models of the catalog the stack, as setup does.

    Raises NotFound, UsageProblem, Busy where another choice is under way.
    """
    models = recommend.all_models(db.home)
    for words in args["choice"].values():
        recommend.named(words, models)
    if not args["choice"] or args["intent"] not in INTENTS:
        raise UsageProblem(f"No stack is chosen for the intent {args['intent'][:40]!r}.")
    wanted = {"intent": args["intent"], "choice": args["choice"], "pull": True, "start": True}
    _require_same(db, "score", wanted)
    return [new("detect"), new("score", wanted, needs=["detect"])]


def _upgrade(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    """Return the job that upgrades mlxq. Raises UsageProblem for an installation that other tools upgrade, Busy."""
    from tasks.upgrade import installation

    installation.require_upgradable()
    wanted = {"to": args.get("to")}
    _require_same(db, "upgrade", wanted)
    return [new("upgrade", wanted)]


def _require_same(db: Database, kind: str, args: Mapping[str, Any]) -> None:
    """Raise Busy where a job of which there is one at a time does something else."""
    for row in job.listing(db, kind=kind):
        if row.live and any(row.args.get(name) != value for name, value in args.items()):
            raise Busy(f"Job {row.id} ({kind}) is under way here with other choices.")


COMMANDS: Mapping[str, NodeCommand] = {
    "pull": NodeCommand(_pull, {"model": str, "quant": str, "force": bool, "bench": bool}, frozenset({"model"})),
    "rm": NodeCommand(_rm, {"model": str, "force": bool}, frozenset({"model"})),
    "up": NodeCommand(_up, {"names": list}),
    "down": NodeCommand(_down, {"names": list, "drain": bool}),
    "restart": NodeCommand(_restart, {"names": list}),
    "load": NodeCommand(_load, {"model": str}, frozenset({"model"})),
    "unload": NodeCommand(_unload, {"model": str}, frozenset({"model"})),
    "bench": NodeCommand(_bench, {"target": str, "save": bool}, frozenset({"target"})),
    "verify": NodeCommand(_verify, {"model": str}),
    "stack": NodeCommand(_stack, {"choice": dict, "intent": str}, frozenset({"choice", "intent"})),
    "upgrade": NodeCommand(_upgrade, {"to": str}),
}
"""Everything that a node may be asked for."""
