"""Two machines become a fleet: they join, do jobs for each other, leave, and let no one else in.

One story over two real workers and gateways: each test continues where the one before it ended.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import loopback, machines
from support.fleet import Machine
from support.load import PAUSE_S
from support.mlxq_home import until
from support.ports import free_port

from state import facts, job, keys, ledger, secrets, settings, stack
from state import fleet as fleet_rows
from state.db import open_database
from state.job import Job, JobState
from tasks.fleet import planning, token
from tasks.fleet.node_client import IDEMPOTENCY_KEY, SIGNATURE, sign
from tasks.gateway.fleet.api import JOBS, MEMBER, ROUTES, STATUS
from tasks.system import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MODEL = "smollm2-135m int4"
THREE = {"standard": MODEL, "fast": MODEL, "longctx": MODEL}
CHAT = {"model": "standard", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
PULL = {"command": "restart", "args": {"names": ["standard"]}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, builtin_model: Path) -> Iterator[tuple[Machine, Machine]]:
    """Return the machine that invites, mini, and studio, which joins; only their gateways and workers run yet."""
    root = tmp_path_factory.mktemp("fleet")
    machines = tuple(Machine(name, root / name, builtin_model) for name in ("mini", "studio"))
    for machine in machines:
        settings.write(machine.home, "tier-port-base", free_port())
        machine.up()
        machine.mlxq.ended(machine.mlxq.put("detect"))
    yield machines[0], machines[1]
    for machine in machines:
        machine.close()


def invited(machine: Machine) -> str:
    """Return a fresh token."""
    return machine.document("node", "invite", "--yes")["token"]


def master(machine: Machine) -> str:
    return secrets.read(machine.home.secrets)[secrets.MASTER]


class Asking(threading.Thread):
    """Asks gateways on loopback, one request after another, until it is stopped."""

    def __init__(self, choose: Callable[[], Machine]) -> None:
        """`choose`: whom to ask next."""
        super().__init__(daemon=True)
        self.choose = choose
        self.over = threading.Event()
        self.answers: list[int] = []

    def run(self) -> None:
        while not self.over.wait(PAUSE_S):
            machine = self.choose()
            url, headers = f"http://127.0.0.1:{machine.port}", {"Authorization": f"Bearer {master(machine)}"}
            self.answers.append(loopback.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers).status_code)


def test_a_machine_joins_and_refuses_nothing_meanwhile(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    text = invited(mini)
    asking = Asking(lambda: studio)
    asking.start()
    said = studio.run("node", "join", "-", "--yes", text=text)
    asking.over.set()
    asking.join()

    assert "studio serves in the fleet of mini." in said
    assert set(asking.answers) == {200}
    node = mini.nodes()["studio"]
    assert (node["state"], node["problem"], node["address"]) == ("healthy", None, studio.url)
    assert node["serves"]["standard"] == {"context": 4096, "slots": 4, "decode_tps": None}
    assert "studio is in the fleet of mini" in studio.run("node", "list")
    assert text not in mini.mlxq.logs() + studio.mlxq.logs()


def test_an_invitation_counts_once_and_one_that_is_not_right_changes_nothing(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    text = invited(mini)
    real = token.parse(text)
    forged = token.Invitation(real.name, real.addresses, "ab" * 32, real.secret)

    assert "has another fingerprint" in studio.run("node", "join", "-", "--yes", text=forged.text(), code=1)
    used = studio.run("node", "join", "-", "--yes", text=text)
    assert "studio serves" in used, "a node that joins again takes its own place"
    assert "was used already" in studio.run("node", "join", "-", "--yes", text=text, code=1)
    studio.run("config", "set", "node-name", "mini")
    twin = studio.run("node", "join", "-", "--yes", text=(again := invited(mini)), code=2)
    assert "There is a node mini in this fleet already." in twin
    assert "mlxq config set node-name NAME" in twin
    studio.run("config", "set", "node-name", "studio")
    assert "studio serves" in studio.run("node", "join", "-", "--yes", text=again), "it used nothing up"
    assert "this machine" in mini.run("node", "remove", "mini", "--yes", code=2)
    place = f"127.0.0.2:{mini.port}"
    until(lambda: place in (said := studio.run("node", "join", code=2)) and "A token is needed" in said, 60)


def test_a_job_for_a_node_is_done_there_once(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    said = mini.run("--node", "studio", "restart", "standard")
    assert "studio: job" in said
    assert "restart standard" in mini.run("--node", "studio", "jobs")
    assert "does not run on another node" in mini.run("--node", "studio", "config", "list", code=2)
    assert "There is no tier 'gateway'" in mini.run("--node", "studio", "down", "gateway", code=1)

    secret = (mini.home.root / "fleet" / "studio.key").read_text().strip()
    body = json.dumps(PULL).encode()
    headers = {IDEMPOTENCY_KEY: "k" * 24, SIGNATURE: sign(secret, "k" * 24, body)}
    with studio.client(secret) as client:
        answers = [client.post(JOBS, content=body, headers=headers) for _ in range(3)]
        assert {answer.text for answer in answers} == {answers[0].text}
        assert answers[0].status_code == 200, answers[0].text
        changed = client.post(JOBS, content=body.replace(b"restart", b"down"), headers=headers)
        assert (changed.status_code, changed.json()["error"]["code"]) == (401, "invalid_signature"), changed.text
        other = json.dumps({"command": "down", "args": {}}).encode()
        replayed = client.post(JOBS, content=other, headers=headers | {SIGNATURE: sign(secret, "k" * 24, other)})
        assert "was used for another request" in replayed.text


def test_a_plan_asks_each_machine_what_it_is_and_changes_nothing(fleet: tuple[Machine, Machine]) -> None:
    """Over the pinned TLS, with the key of the fleet."""
    mini, _ = fleet
    found = [facts.get(machine.mlxq.db, "machine") for machine in fleet]
    for machine in fleet:
        facts.put(machine.mlxq.db, "machine", asdict(machines.named("M4 Pro", 48)))
    planned = mini.document("fleet", "plan", "--intent", "agent-fleet")

    assert [node["name"] for node in planned["nodes"]] == ["mini", "studio"], planned
    assert set().union(*(node["tiers"] for node in planned["nodes"])) == {"standard", "fast", "longctx"}
    assert "To be changed, in this order: studio, mini." in mini.run("fleet", "apply", "--dry-run")
    assert "stdin is not a terminal" in mini.run("fleet", "apply", code=2)
    for machine, row in zip(fleet, found, strict=True):
        facts.put(machine.mlxq.db, "machine", row)


def begun(mini: Machine, kind: str, *names: str, **args: Any) -> list[int]:
    """Enqueue what `fleet apply` or `fleet upgrade` does for these machines; give the jobs."""
    jobs = planning.in_turn(kind, [(name, args) for name in names])
    return [number for number, _ in ledger.enqueue_all(mini.mlxq.db, jobs).values()]


def ended(mini: Machine, numbers: list[int]) -> list[Job]:
    return [mini.mlxq.ended(number) for number in numbers]


def states(jobs: list[Job]) -> list[JobState]:
    return [row.state for row in jobs]


def asked_there(machine: Machine) -> int:
    """Give how often a machine was asked for a stack."""
    return machine.mlxq.db.value("SELECT count(*) FROM jobs WHERE kind = 'score'")


def changing(machine: Machine) -> Mapping[str, int]:
    """Give the machines that are changed now, in another thread."""
    db = open_database(machine.home)
    try:
        return fleet_rows.changing(db)
    finally:
        db.close()


def test_each_machine_changes_while_the_other_serves_whoever_dies_meanwhile(fleet: tuple[Machine, Machine]) -> None:
    """The applying worker is killed, then the node that it changes: the job resumes, and no request is sent twice."""
    mini, studio = fleet
    asking = Asking(lambda: studio if "mini" in changing(mini) else mini)
    asking.start()
    numbers = begun(mini, "change_node", "studio", "mini", choice=THREE, intent="balanced")
    until(lambda: asked_there(studio))
    mini.mlxq.kill_worker()
    assert fleet_rows.get(mini.mlxq.db, "studio").offered == {}
    assert fleet_rows.get(mini.mlxq.db, "studio").changed_by == numbers[0]
    gateway = studio.mlxq.one("gateway")
    studio.mlxq.kill_worker()
    process.stop(studio.mlxq.identity("gateway"), 0)
    mini.mlxq.work_with_fakes()
    until(lambda: "is away" in str(job.get(mini.mlxq.db, numbers[0]).phase))
    studio.mlxq.work_with_fakes()
    studio.mlxq.await_next(gateway)
    done = ended(mini, numbers)
    asking.over.set()
    asking.join()

    assert states(done) == [JobState.SUCCEEDED] * 2, [row.error for row in done]
    assert [row.result for row in done] == [{"node": name, "changed": True} for name in ("studio", "mini")]
    assert asked_there(studio) == 1
    assert set(asking.answers) == {200}
    assert [{tier.name for tier in stack.tiers(machine.mlxq.db)} for machine in fleet] == [set(THREE)] * 2
    until(lambda: set(THREE) <= mini.nodes()["studio"]["serves"].keys(), 30)
    again = ended(mini, begun(mini, "change_node", "studio", "mini", choice=THREE, intent="balanced"))
    assert [row.result["changed"] for row in again] == [False] * 2, "what is as planned is left alone"


def test_the_first_machine_that_fails_stops_those_after_it(fleet: tuple[Machine, Machine]) -> None:
    mini, _ = fleet
    wrong = begun(mini, "change_node", "studio", "mini", choice={"standard": "no-such-model int4"}, intent="balanced")
    upgrade = mini.run("fleet", "upgrade", "--yes", code=2)
    refused = begun(mini, "upgrade_node", "studio")

    assert states(rows := ended(mini, wrong)) == [JobState.FAILED, JobState.CANCELLED]
    assert "There is no model 'no-such-model'" in str(rows[0].error)
    assert "runs from a checkout" in upgrade
    (row,) = ended(mini, refused)
    assert "runs from a checkout" in str(row.error)
    assert {"standard", "fast", "longctx"} <= mini.nodes()["studio"]["serves"].keys(), "it is offered as before"


def test_an_attacker_in_the_network_reaches_nothing(fleet: tuple[Machine, Machine]) -> None:
    """Every route, with no key, a wrong one, an app's, the master's, and with those of the other kinds of nodes."""
    mini, studio = fleet
    app = studio.run("keys", "create", "my-app").split()[0]
    member = (studio.home.root / "fleet" / "mini.member.key").read_text().strip()
    routes = [*ROUTES, ("GET", f"{JOBS}/1"), ("POST", f"{JOBS}/1/cancel"), ("GET", "/fleet/v1/none")]
    with studio.client() as client:
        for method, path in routes:
            for key, statuses in (
                ("", {401}),
                ("sk-mlxq-wrong", {401}),
                (app, {403, 404}),
                (master(studio), {403, 404}),
            ):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                answer = client.request(method, path, headers=headers, json=PULL)
                assert answer.status_code in statuses, (method, path, answer.text)
        for path in ("/v1/models", "/v1/chat/completions", "/v1/batches", "/v1/files", "/api/pull", "/api/tags"):
            assert client.post(path, json=CHAT).status_code == 401
        for secret in ("", "x" * 43, token.parse(invited(mini)).secret):
            wrong = client.post("/fleet/v1/join", json={"secret": secret, "name": "evil"})
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (403, "invitation_refused")
        assert client.get("/fleet/v1/authority").text == (studio.home.tls / "ca.pem").read_text()
    with mini.client(member) as client:
        assert client.get(MEMBER).json()["name"] == "studio"
        for method, path in [route for route, kind in ROUTES.items() if kind != "member"]:
            assert client.request(method, path).status_code == 403
        assert client.get("/v1/models").status_code == 403
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 403
    fleet_key = (mini.home.root / "fleet" / "studio.key").read_text().strip()
    with studio.client(fleet_key) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert client.get("/v1/models").status_code == 200
        for method, path in (("GET", MEMBER), ("PUT", MEMBER), ("DELETE", MEMBER)):
            assert client.request(method, path).status_code == 403
        for path in ("/v1/files", "/v1/batches", "/api/pull", "/api/delete", "/api/tags"):
            assert client.get(path).status_code == 403
    plain = httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{studio.port}", timeout=30)
    with plain:
        assert plain.get(STATUS, headers={"Authorization": f"Bearer {fleet_key}"}).status_code == 404
    with mini.client(address=studio.url) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY"):
        client.get(STATUS)
    for _ in range(12):
        with studio.client() as client:
            last = client.post("/fleet/v1/join", json={"secret": "guess"})
    assert last.status_code == 429
    assert "Keys of nodes" in studio.run("keys", "list")


def test_an_outage_is_one_event_and_ends_by_itself(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    gateway, before = studio.mlxq.one("gateway"), outages(mini)
    studio.mlxq.kill_worker()
    process.stop(studio.mlxq.identity("gateway"), 0)
    until(lambda: mini.nodes()["studio"]["state"] == "down", 60)

    said = mini.run("--node", "studio", "restart", code=1)
    assert "The node studio cannot be asked" in said
    assert outages(mini) == [*before, "node_lost"]
    studio.mlxq.work_with_fakes()
    studio.mlxq.await_next(gateway)
    until(lambda: mini.nodes()["studio"]["state"] == "healthy", 60)
    assert outages(mini) == [*before, "node_lost", "node_returned"]


def outages(machine: Machine) -> list[str]:
    """Return the events of nodes that went away and came back."""
    names = "('node_lost', 'node_returned')"
    return [row["name"] for row in machine.mlxq.db.rows(f"SELECT name FROM events WHERE name IN {names} ORDER BY id")]


def test_a_machine_that_moved_says_where_it_is(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    studio.run("config", "set", "node-addresses", "127.0.0.3,127.0.0.2")

    def knows() -> Any:
        return mini.mlxq.db.value("SELECT addresses LIKE '%127.0.0.3%' FROM nodes WHERE name = 'studio'")

    until(knows, 60)


def test_a_node_drains_and_leaves_with_its_keys(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    secret = (mini.home.root / "fleet" / "studio.key").read_text().strip()
    assert "is offered no more" in mini.run("node", "drain", "studio")
    assert mini.nodes()["studio"]["serves"] == {}
    assert mini.nodes()["studio"]["state"] == "draining"
    mini.run("node", "drain", "studio", "--undo")
    assert "standard" in mini.nodes()["studio"]["serves"]
    assert mini.run("node", "remove", "studio", "--yes").strip() == "studio is removed."

    assert mini.nodes() == {}
    assert {key.kind for key in keys.read(keys.file(mini.home)).values()} <= {"app"}
    assert {key.kind for key in keys.read(keys.file(studio.home)).values()} <= {"app"}
    assert not list((mini.home.root / "fleet").iterdir()) + list((studio.home.root / "fleet").iterdir())
    assert "is in no fleet" in studio.run("node", "list")
    with studio.client(secret) as client:
        assert client.get(STATUS).status_code == 401
