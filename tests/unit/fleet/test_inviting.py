"""Who is taken into a fleet, and what uses an invitation up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from state import fleet, keys
from state.db import Database
from state.errors import InvitationRefused, UsageProblem
from state.paths import Home
from tasks.fleet import inviting, token, trust
from tasks.plan.fleet import PROTOCOL
from tasks.system import certificates

ADDRESSES = ("https://127.0.0.2:4000",)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tls")
    certificates.ensure(folder, ["localhost"], datetime.now(UTC))
    return certificates.authority_file(folder).read_text()


@pytest.fixture
def invited(db: Database) -> str:
    """Return the secret of an invitation."""
    secret = token.new_secret()
    fleet.invite(db, token.digest(secret))
    return secret


def request(secret: str, authority: str, **changes: Any) -> dict[str, Any]:
    return {
        "secret": secret,
        "name": "studio",
        "version": "0.1.0",
        "protocol": PROTOCOL,
        "addresses": list(ADDRESSES),
        "authority": authority,
        "key": f"sk-mlxq-{'k' * 43}",
    } | changes


def kinds(home: Home) -> dict[str, str]:
    return {key.name: key.kind for key in keys.read(keys.file(home)).values()}


def test_a_node_is_taken_once(db: Database, invited: str, authority: str) -> None:
    asked = request(invited, authority)
    assert "key" not in inviting.admit_or_check(db, asked | {"check": True}, "0.1.0")
    assert fleet.nodes(db) == []
    answer = inviting.admit_or_check(db, asked, "0.1.0")

    node = fleet.get(db, "studio")
    assert (node.addresses, node.fingerprint) == (ADDRESSES, trust.fingerprint(authority))
    assert fleet.key(db.home, "studio") == asked["key"]
    assert kinds(db.home) == {"node.studio": "member"}
    assert keys.read(keys.file(db.home))[keys.digest(answer["key"])].name == "node.studio"
    with pytest.raises(InvitationRefused, match="was used already"):
        inviting.admit_or_check(db, asked, "0.1.0")


def test_a_node_that_comes_again_by_another_name_is_one_node(db: Database, invited: str, authority: str) -> None:
    inviting.admit_or_check(db, request(invited, authority), "0.1.0")
    fleet.invite(db, token.digest("again"))
    inviting.admit_or_check(db, request("again", authority, name="desk"), "0.1.0")

    assert [node.name for node in fleet.nodes(db)] == ["desk"]
    assert kinds(db.home) == {"node.desk": "member"}
    assert not fleet.key_file(db.home, "studio").exists()


def test_two_nodes_of_one_name_are_refused_with_the_command_that_renames(
    db: Database, invited: str, authority: str
) -> None:
    fleet.put(db, fleet.Node("studio", "mlxq", "https://10.0.0.9:4000", fingerprint="cd" * 32))

    with pytest.raises(UsageProblem, match="There is a node studio in this fleet already") as refused:
        inviting.admit_or_check(db, request(invited, authority), "0.1.0")
    assert refused.value.hint == "mlxq config set node-name NAME   (on the machine that joins)"
    assert fleet.get(db, "studio").fingerprint == "cd" * 32
    inviting.admit_or_check(db, request(invited, authority, name="desk"), "0.1.0")


def test_without_the_secret_nothing_else_is_said(db: Database, invited: str, authority: str) -> None:
    for secret in (None, "", 7, {}, "x" * 43, "é"):
        with pytest.raises(InvitationRefused, match="not of this node"):
            inviting.admit_or_check(db, request("", authority, name="../", protocol=9) | {"secret": secret}, "0.1.0")


WRONG: Sequence[tuple[dict[str, Any], str]] = (
    ({"protocol": PROTOCOL + 1}, "upgrade this node"),
    ({"protocol": PROTOCOL - 1}, "upgrade it"),
    ({"protocol": None}, "upgrade it"),
    ({"name": "../keys"}, "small letters"),
    ({"name": None}, "small letters"),
    ({"authority": "no certificate"}, "not whole"),
    ({"authority": None}, "not whole"),
    ({"authority": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "not whole"),
    ({"authority": "x" * 9000}, "not whole"),
    ({"addresses": []}, "not whole"),
    ({"addresses": ["http://10.0.0.1:4000"]}, "not whole"),
    ({"addresses": None}, "not whole"),
    ({"key": "sk-other"}, "not whole"),
    ({"key": "sk-mlxq-a\r\nx: y" + "z" * 30}, "not whole"),
)


def test_what_is_wrong_uses_no_invitation_up(db: Database, invited: str, authority: str) -> None:
    for changes, words in WRONG:
        with pytest.raises(UsageProblem, match=words):
            inviting.admit_or_check(db, request(invited, authority) | changes, "0.1.0")
    assert fleet.nodes(db) == []
    assert fleet.invited(db)
