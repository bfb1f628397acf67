"""The rows of a fleet: nodes, invitations, requests for jobs, and the files of keys."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest

from state import fleet, ledger, service
from state.db import Database
from state.errors import Damaged, MlxqError, NotFound, UsageProblem
from state.fleet import INVITATION_S, Membership, Node, ServedModel
from state.job import NewJob

SERVES = {"fast": ServedModel("fast", 65_536, 4, 61.5), "qwen3.5-4b": ServedModel("qwen3.5-4b", 65_536, 4)}
STUDIO = Node(
    "studio",
    "mlxq",
    "https://10.0.0.2:4000",
    authority="PEM",
    fingerprint="ab" * 32,
    serves=SERVES,
    version="0.3.0",
    seen_at=5.0,
    joined_at=4.0,
    addresses=("https://10.0.0.2:4000", "https://studio.local:4000"),
)
BOX = Node("box", "openai", "http://10.0.0.9:8000", joined_at=4.0)


def test_nodes_are_read_as_they_were_written_and_a_second_of_a_name_replaces_the_first(db: Database) -> None:
    fleet.put(db, BOX)
    fleet.put(db, STUDIO)
    fleet.put(db, changed := replace(STUDIO, problem="away"))

    assert fleet.nodes(db) == [BOX, changed]
    assert fleet.get(db, "studio") == changed
    assert fleet.find(db, "none") is None
    with pytest.raises(NotFound, match="There is no node 'none'; there is: box, studio"):
        fleet.get(db, "none")


def test_a_change_says_whether_anything_became_another(db: Database) -> None:
    fleet.put(db, STUDIO)

    assert not fleet.change(db, "studio", problem=None, serves=SERVES)
    assert fleet.change(db, "studio", problem="away", running=2)
    assert fleet.get(db, "studio") == replace(STUDIO, problem="away", running=2)
    assert not fleet.change(db, "none", problem="away")


def test_a_node_is_offered_for_what_it_has_until_it_drains(db: Database) -> None:
    fleet.put(db, replace(STUDIO, missing=("qwen3.5-4b",)))

    assert fleet.get(db, "studio").offered == {"fast": SERVES["fast"]}
    fleet.change(db, "studio", state="draining")
    assert fleet.get(db, "studio").offered == {}


def test_a_node_is_offered_for_nothing_while_a_job_changes_it_and_no_longer(db: Database) -> None:
    fleet.put(db, STUDIO)
    number, _ = ledger.enqueue(db, NewJob("change_node"))
    fleet.begin_change(db, "studio", number)

    assert fleet.get(db, "studio").changed_by == number
    assert fleet.get(db, "studio").offered == {}
    assert not fleet.change(db, "studio", state="joined"), "whether its user drains it is another matter"
    ledger.cancel(db, number)
    assert fleet.nodes(db) == [STUDIO], "a job that ended holds none, however it did"


def test_a_removed_node_leaves_no_key(db: Database) -> None:
    fleet.put(db, STUDIO)
    fleet.put_key(db.home, "studio", "sk-mlxq-1")
    path = fleet.key_file(db.home, "studio")

    assert fleet.key(db.home, "studio") == "sk-mlxq-1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(MlxqError, match="Other users may read"):
        fleet.key(db.home, "studio")
    assert fleet.remove(db, "studio")
    assert not path.exists()
    assert not fleet.remove(db, "studio")
    with pytest.raises(Damaged, match="Cannot read the key of the node studio"):
        fleet.key(db.home, "studio")


def test_two_nodes_that_invited_each_other_have_a_key_for_both(db: Database) -> None:
    fleet.put(db, STUDIO)
    fleet.put_key(db.home, "studio", "sk-mlxq-node")
    fleet.put_key(db.home, "studio", "sk-mlxq-member", member=True)
    assert (fleet.key(db.home, "studio"), fleet.key(db.home, "studio", member=True)) == (
        "sk-mlxq-node",
        "sk-mlxq-member",
    )
    fleet.remove(db, "studio")
    assert fleet.key(db.home, "studio", member=True) == "sk-mlxq-member"


@pytest.mark.parametrize("name", ["", "Studio", "../keys", "a/b", "a.b", "-a", "a" * 32])
def test_a_name_that_is_no_label_leads_to_no_file(db: Database, name: str) -> None:
    with pytest.raises(UsageProblem, match="is no name for a node"):
        fleet.key_file(db.home, name)


def test_an_invitation_is_valid_once_and_for_ten_minutes(db: Database) -> None:
    db.clock = lambda: 1_000.0
    assert fleet.invite(db, "a" * 64) == 1_000.0 + INVITATION_S
    fleet.invite(db, "b" * 64)

    assert fleet.invited(db)
    assert fleet.redeem(db, "c" * 64) == "unknown"
    assert fleet.redeem(db, "a" * 64) == "valid"
    assert fleet.redeem(db, "a" * 64) == "used"
    db.clock = lambda: 1_000.0 + INVITATION_S
    assert fleet.redeem(db, "b" * 64) == "expired"
    assert not fleet.invited(db)


def test_a_clock_that_was_set_back_opens_no_invitation_again(db: Database) -> None:
    db.clock = lambda: 1_000.0
    fleet.invite(db, "a" * 64)
    db.clock = lambda: 999.0

    assert fleet.redeem(db, "a" * 64) == "expired"


def test_a_fleet_is_joined_once(db: Database) -> None:
    first = Membership("mini", ("https://10.0.0.1:4000",), "PEM", "cd" * 32, joined_at=3.0)
    fleet.put_membership(db, first)
    fleet.put_membership(db, renamed := replace(first, name="desk"))
    fleet.announced(db, "desk", ("https://10.0.0.2:4000",))

    assert fleet.memberships(db) == [replace(renamed, announced=("https://10.0.0.2:4000",))]
    assert fleet.remove_membership(db, "desk")
    assert not fleet.remove_membership(db, "desk")


def test_a_request_is_known_again_by_its_key_and_idempotency_key(db: Database) -> None:
    fleet.answer(db, "fleet.mini", "id-1", "d1", [7, 8])

    assert fleet.answered(db, "fleet.mini", "id-1", "d1") == [7, 8]
    assert fleet.answered(db, "fleet.mini", "id-2", "d1") is None
    assert fleet.answered(db, "fleet.other", "id-1", "d1") is None
    with pytest.raises(UsageProblem, match="was used for another request"):
        fleet.answered(db, "fleet.mini", "id-1", "d2")
    assert fleet.asked(db, "fleet.mini") == [7, 8]
    assert fleet.asked(db, "fleet.other") == []
    fleet.forget_requests(db, "fleet.mini")
    assert fleet.asked(db, "fleet.mini") == []


def test_the_migration_keeps_services_and_lets_one_be_a_front(rows: Database) -> None:
    before = service.listing(rows)

    rows.run("UPDATE services SET kind = 'front' WHERE name = ?", (before[-1].name,))
    assert [row.name for row in service.listing(rows)].count(before[-1].name) == 1
