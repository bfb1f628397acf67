"""The nodes of a fleet, as the node that invited them knows them, and the fleets that this node joined.

A node's key is a file of its own, `MLXQ_HOME/fleet/NAME.key`; no key is in a table. Times are unix seconds.
"""

from __future__ import annotations

import hmac
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from state import facts, files, settings
from state.db import Database, Row, atomic, json_mapping, json_strings, known_columns
from state.errors import Damaged, MlxqError, NotFound, UsageProblem
from state.paths import Home

if TYPE_CHECKING:
    from sqlite_utils import Database as Schema

NodeKind = Literal["mlxq", "openai"]
"""openai: any server that speaks OpenAI's API, such as plain vLLM."""
NodeState = Literal["joined", "draining"]
NAME = re.compile(settings.NODE_NAME)
INVITATION_S = 600.0
"""Seconds for which an invitation is valid, by the clock of the node that invites."""
FACT, CHANGING = "fleet", "fleet_changing"
FORGOTTEN_S = 86400.0
"""After this an expired invitation is not known any more."""
REQUESTS_KEPT_S = 7 * 86400.0
"""How long a request for a job is known again."""

LIVE = "SELECT count(*) FROM jobs WHERE id = ? AND state IN ('blocked', 'queued', 'running')"

NODES = """
CREATE TABLE nodes (
  name TEXT PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('mlxq', 'openai')),
  address TEXT NOT NULL,
  addresses TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(addresses)),
  authority TEXT NOT NULL DEFAULT '',
  fingerprint TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL DEFAULT 'joined' CHECK (state IN ('joined', 'draining')),
  serves TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(serves)),
  missing TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(missing)),
  running INTEGER NOT NULL DEFAULT 0,
  version TEXT NOT NULL DEFAULT '',
  seen_at REAL,
  problem TEXT,
  joined_at REAL NOT NULL
) STRICT, WITHOUT ROWID
"""
INVITATIONS = """
CREATE TABLE invitations (
  digest TEXT PRIMARY KEY,
  created_at REAL NOT NULL,
  expires_at REAL NOT NULL,
  used_at REAL
) STRICT, WITHOUT ROWID
"""
MEMBERSHIPS = """
CREATE TABLE memberships (
  name TEXT PRIMARY KEY,
  addresses TEXT NOT NULL CHECK (json_valid(addresses)),
  authority TEXT NOT NULL,
  fingerprint TEXT NOT NULL UNIQUE,
  announced TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(announced)),
  joined_at REAL NOT NULL
) STRICT, WITHOUT ROWID
"""
FLEET_REQUESTS = """
CREATE TABLE fleet_requests (
  key TEXT NOT NULL,
  idempotency_key TEXT NOT NULL,
  digest TEXT NOT NULL,
  jobs TEXT NOT NULL CHECK (json_valid(jobs)),
  at REAL NOT NULL,
  PRIMARY KEY (key, idempotency_key)
) STRICT, WITHOUT ROWID
"""
_KINDS = "kind IN ('engine', 'gateway', 'page')"
_MORE_KINDS = "kind IN ('engine', 'gateway', 'page', 'front')"


@dataclass(frozen=True)
class ServedModel:
    """What a node serves under one name."""

    model: str
    """What the node is asked for: the same name, except at a node of kind openai."""
    context: int
    """Tokens of one request, prompt and answer together; 0 where the node does not say it."""
    slots: int
    """Requests that run side by side."""
    decode_tps: float | None = None
    """Tokens/s of one answer, as measured; None where nothing was measured."""


@dataclass(frozen=True)
class Node:
    """One machine of the fleet, as this one knows it."""

    name: str
    kind: NodeKind
    address: str
    """The base URL that answered last, without /v1; https for mlxq."""
    authority: str = ""
    """The certificate, as PEM, of the one authority that is trusted for it; empty for openai."""
    fingerprint: str = ""
    """SHA-256 of that certificate, in hex."""
    state: NodeState = "joined"
    """draining: it is offered for nothing new."""
    serves: Mapping[str, ServedModel] = field(default_factory=dict[str, ServedModel])
    """Name of a group (standard, fast, longctx …) or of a model -> what serves it."""
    missing: tuple[str, ...] = ()
    """Names that it says it serves, and answered with 404."""
    running: int = 0
    """Requests that it answered when it was asked last."""
    version: str = ""
    """Of its mlxq."""
    seen_at: float | None = None
    """When it answered last."""
    problem: str | None = None
    """What is wrong with it, in words; None for a node that is well."""
    joined_at: float = 0.0
    addresses: tuple[str, ...] = ()
    """Every base URL that it is known to have."""
    changed_by: int | None = None
    """The job of this machine that changes it now; it is offered for nothing meanwhile."""

    @property
    def offered(self) -> dict[str, ServedModel]:
        """Return what it is to be asked for: nothing while it drains or changes, and nothing that it does not have."""
        if self.state == "draining" or self.changed_by is not None:
            return {}
        return {name: served for name, served in self.serves.items() if name not in self.missing}


@dataclass(frozen=True)
class Membership:
    """A fleet that this node joined: the node that invited it."""

    name: str
    addresses: tuple[str, ...]
    authority: str
    """The certificate of that node's authority, as PEM."""
    fingerprint: str
    announced: tuple[str, ...] = ()
    """The addresses of this node that it was told last."""
    joined_at: float = 0.0


COLUMNS = tuple(entry.name for entry in fields(Node) if entry.name != "changed_by")


# ---------------------------------------------------------------- nodes


def nodes(db: Database) -> list[Node]:
    """Return every node by name, this one not among them."""
    by = changing(db)
    return [_node(row, by) for row in db.rows("SELECT * FROM nodes ORDER BY name")]


def find(db: Database, name: str) -> Node | None:
    """Return the node of a name; None where there is none."""
    row = db.row("SELECT * FROM nodes WHERE name = ?", (name,))
    return None if row is None else _node(row, changing(db))


def get(db: Database, name: str) -> Node:
    """Return the node of a name. Raises NotFound."""
    node = find(db, name)
    if node is None:
        if names := ", ".join(entry.name for entry in nodes(db)):
            raise NotFound(f"There is no node {name!r}; there is: {names}.", hint="mlxq node list")
        raise NotFound(
            f"There is no node {name!r}: no other machine has joined this one's fleet.", hint="mlxq node invite"
        )
    return node


@atomic
def put(db: Database, node: Node) -> None:
    """Add a node, or replace the one of its name."""
    db.run("DELETE FROM nodes WHERE name = ?", (node.name,))
    values = {name: getattr(node, name) for name in COLUMNS}
    db.insert("nodes", _columns(values) | {"joined_at": node.joined_at or db.now()})
    db.wake()


def change(db: Database, name: str, **values: Any) -> bool:
    """Change fields of a node; return whether anything became another. Watchers are woken only then."""
    before = find(db, name)
    if before is None:
        return False
    new = {key: value for key, value in values.items() if getattr(before, key) != value}
    if not new:
        return False
    columns = _columns(new)
    assignments = ", ".join(f"{column} = :{column}" for column in columns)
    with db.transaction():
        db.run(f"UPDATE nodes SET {assignments} WHERE name = :node", {**columns, "node": name})  # noqa: S608 (names of fields)
        if new.keys() - {"seen_at"}:
            db.announce()
    return True


@atomic
def begin_change(db: Database, name: str, job: int) -> None:
    """Have a machine, this one too, offered for nothing while a job changes it."""
    facts.put(db, CHANGING, {**facts.get(db, CHANGING), name: job})


@atomic
def end_change(db: Database, name: str) -> None:
    """Have a machine offered again; one that the user drains stays so."""
    facts.put(db, CHANGING, {other: job for other, job in facts.get(db, CHANGING).items() if other != name})


def changing(db: Database) -> dict[str, int]:
    """Return the machines that jobs change, each with its job. A job that ended, however it did, holds none."""
    rows = facts.get(db, CHANGING)
    return {name: job for name, job in rows.items() if db.value(LIVE, (job,))}


@atomic
def remove(db: Database, name: str) -> bool:
    """Forget a node and its key; return whether there was one."""
    return _remove(db, "DELETE FROM nodes WHERE name = ?", name)


def _remove(db: Database, statement: str, name: str, *, member: bool = False) -> bool:
    removed = db.run(statement, (name,)) > 0
    key_file(db.home, name, member=member).unlink(missing_ok=True)
    db.wake()
    return removed


# ---------------------------------------------------------------- invitations


@atomic
def invite(db: Database, digest: str) -> float:
    """Add an invitation by the SHA-256 of its secret, in hex; return until when it is valid."""
    now = db.now()
    db.run("DELETE FROM invitations WHERE expires_at < ?", (now - FORGOTTEN_S,))
    db.insert("invitations", {"digest": digest, "created_at": now, "expires_at": now + INVITATION_S})
    return now + INVITATION_S


def invited(db: Database) -> bool:
    """Return whether an invitation is open."""
    return any(_is_open(row, db.now()) for row in db.rows("SELECT * FROM invitations"))


@atomic
def redeem(db: Database, digest: str) -> Literal["valid", "expired", "used", "unknown"]:
    """Use an invitation up, and return whether it was valid. Every stored digest is compared, in constant time.

    A clock that was set back makes none valid for longer than INVITATION_S from its beginning.
    """
    now = db.now()
    matches = [row for row in db.rows("SELECT * FROM invitations") if hmac.compare_digest(row["digest"], digest)]
    if not matches:
        return "unknown"
    if matches[0]["used_at"] is not None:
        return "used"
    if not _is_open(matches[0], now):
        return "expired"
    db.run("UPDATE invitations SET used_at = ? WHERE digest = ? AND used_at IS NULL", (now, digest))
    return "valid"


def _is_open(row: Row, now: float) -> bool:
    return row["used_at"] is None and row["created_at"] <= now < row["expires_at"]


# ---------------------------------------------------------------- fleets that this node joined


def memberships(db: Database) -> list[Membership]:
    """Return the fleets that this node joined, by the name of the node that invited it."""
    return [_membership(row) for row in db.rows("SELECT * FROM memberships ORDER BY name")]


@atomic
def put_membership(db: Database, membership: Membership) -> None:
    """Record that this node joined a fleet, in place of the same node's earlier invitation."""
    db.run("DELETE FROM memberships WHERE name = ? OR fingerprint = ?", (membership.name, membership.fingerprint))
    values = asdict(membership) | {"joined_at": membership.joined_at or db.now()}
    for name in ("addresses", "announced"):
        values[name] = json.dumps(values[name])
    db.insert("memberships", values)
    db.wake()


def announced(db: Database, name: str, addresses: tuple[str, ...]) -> None:
    """Record which addresses of this node were told to the node that invited it."""
    db.run("UPDATE memberships SET announced = ? WHERE name = ?", (json.dumps(addresses), name))


@atomic
def remove_membership(db: Database, name: str) -> bool:
    """Forget a fleet and the key for it; return whether this node belonged to it."""
    return _remove(db, "DELETE FROM memberships WHERE name = ?", name, member=True)


# ---------------------------------------------------------------- requests for jobs


def answered(db: Database, key: str, idempotency_key: str, digest: str) -> list[int] | None:
    """Return the jobs that a request led to before, None for a new one. Raises UsageProblem where it was another.

    `key`: the name of the key that asks; `digest`: SHA-256 of what it asks.
    """
    row = db.row(
        "SELECT digest, jobs FROM fleet_requests WHERE key = ? AND idempotency_key = ?", (key, idempotency_key)
    )
    if row is None:
        return None
    if not hmac.compare_digest(row["digest"], digest):
        raise UsageProblem("This idempotency key was used for another request.")
    return list(json.loads(row["jobs"]))


def answer(db: Database, key: str, idempotency_key: str, digest: str, jobs: list[int]) -> None:
    """Record which jobs a request led to; the caller holds the transaction that enqueues them."""
    db.run("DELETE FROM fleet_requests WHERE at < ?", (db.now() - REQUESTS_KEPT_S,))
    values = {"key": key, "idempotency_key": idempotency_key, "digest": digest, "jobs": json.dumps(jobs)}
    db.insert("fleet_requests", values | {"at": db.now()})


def forget_requests(db: Database, key: str) -> None:
    """Forget what a key that is revoked asked."""
    db.run("DELETE FROM fleet_requests WHERE key = ?", (key,))


def asked(db: Database, key: str) -> list[int]:
    """Return the jobs that a key's requests led to."""
    rows = db.rows("SELECT jobs FROM fleet_requests WHERE key = ? ORDER BY at", (key,))
    return [job for row in rows for job in json.loads(row["jobs"])]


def turn_on(db: Database) -> None:
    """Record that the user opened the gateway for nodes of a fleet."""
    facts.put(db, FACT, {"opened_at": db.now()})


def is_on(db: Database) -> bool:
    """Return whether the user opened the gateway for nodes of a fleet: it needs no key of an app to be open then."""
    return bool(facts.get(db, FACT))


# ---------------------------------------------------------------- keys


def key_file(home: Home, name: str, *, member: bool = False) -> Path:
    """Return the file of the key that opens a node, or of this node's membership of its fleet.

    Two nodes that invited each other have both.
    """
    if not NAME.fullmatch(name):
        raise UsageProblem(f"{name!r} is no name for a node: small letters, digits and dashes.")
    return home.root / "fleet" / (f"{name}.member.key" if member else f"{name}.key")


def key(home: Home, name: str, *, member: bool = False) -> str:
    """Return the key that opens a node, or that of a membership.

    Raises Damaged where there is none, MlxqError when others may read it.
    """
    path = key_file(home, name, member=member)
    try:
        mode, secret = stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise Damaged(
            f"Cannot read the key of the node {name} in {path}.", hint=f"mlxq node remove {name}"
        ) from problem
    if mode & 0o077:
        raise MlxqError(f"Other users may read {path} (mode {mode:04o}).", hint=f"chmod 600 {path}")
    return secret


def put_key(home: Home, name: str, secret: str, *, member: bool = False) -> None:
    """Store the key that opens a node, or that of a membership, mode 0600. Raises MlxqError."""
    path = key_file(home, name, member=member)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        files.replace_private(path, f"{secret}\n")
    except OSError as problem:
        raise MlxqError(f"Cannot write the key of a node to {path}: {problem.strerror}.") from problem


# ---------------------------------------------------------------- rows


def m020_nodes(db: Schema) -> None:
    """Add the nodes of a fleet, and let a service be of the kind `front`."""
    for statement in (NODES, INVITATIONS, MEMBERSHIPS, FLEET_REQUESTS):
        db.execute(statement)
    db.execute("CREATE UNIQUE INDEX nodes_fingerprint ON nodes (fingerprint) WHERE fingerprint <> ''")
    _add_kind(db)


def _add_kind(db: Schema) -> None:
    """Make the table `services` again with another check, which SQLite cannot change; nothing refers to it."""
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'services'").fetchone()
    head, _, columns = sql.partition("(")
    assert "services" in head
    assert _KINDS in columns
    db.execute(f"CREATE TABLE more_services ({columns.replace(_KINDS, _MORE_KINDS)}")
    db.execute("INSERT INTO more_services SELECT * FROM services")
    db.execute("DROP TABLE services")
    db.execute("ALTER TABLE more_services RENAME TO services")


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a node as its row has them."""
    columns = dict(values)
    if "serves" in columns:
        columns["serves"] = json.dumps({name: asdict(served) for name, served in columns["serves"].items()})
    for name in ("missing", "addresses"):
        if name in columns:
            columns[name] = json.dumps(columns[name])
    return columns


def _node(row: Row, by: Mapping[str, int]) -> Node:
    values: dict[str, Any] = {name: row[name] for name in COLUMNS}
    values["serves"] = {name: ServedModel(**served) for name, served in json_mapping(row["serves"]).items()}
    for name in ("missing", "addresses"):
        values[name] = tuple(json_strings(row[name]))
    return Node(**values, changed_by=by.get(row["name"]))


def _membership(row: Row) -> Membership:
    values = known_columns(row, Membership)
    for name in ("addresses", "announced"):
        values[name] = tuple(json_strings(row[name]))
    return Membership(**values)
