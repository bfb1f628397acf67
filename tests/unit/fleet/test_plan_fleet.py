"""What a node says of itself, and what a look at it means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from state.fleet import Node, ServedModel
from tasks.plan import fleet as plan
from tasks.plan.fleet import LOST, PROTOCOL, Look, NodeStatus, judge, read_status

SERVES = {"fast": ServedModel("fast", 4096, 4, 50.0), "tiny": ServedModel("tiny", 4096, 4)}
STATUS = NodeStatus("studio", "0.1.0", serves=SERVES, running=2)
NODE = Node("studio", "mlxq", "https://10.0.0.2:4000", serves=SERVES, seen_at=5.0)
AWAY = Look(NODE.address, failure="away", words="10.0.0.2:4000 does not answer: nothing within 2 s")


def test_a_status_is_read_as_it_was_written() -> None:
    assert read_status(STATUS.document()) == STATUS


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"protocol": "1"},
        {"protocol": True},
        {"protocol": 1, "serves": []},
        {"protocol": 1, "serves": {"fast": 7}},
        {"protocol": 1, "serves": {"fast": {"context": -1}}},
        {"protocol": 1, "running": 1e9},
        {"protocol": 1, "running": 2**70},
    ],
)
def test_what_is_no_status_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"^no (object|count)"):
        read_status(document)


def test_names_and_texts_that_could_harm_a_terminal_come_no_further() -> None:
    evil = {
        "protocol": 1,
        "version": "0.1\x1b[2J",
        "problem": "all \x1b[31mwell\x07" + "x" * 999,
        "serves": {"\x1b[2J": {}, "fast": {"model": "a b"}, "tiny": {"decode_tps": "quick"}},
    }
    status = read_status(evil)

    assert status.version == ""
    assert status.problem is not None
    assert status.problem.startswith("all  [31mwell ")
    assert len(status.problem) == plan.LONGEST_TEXT
    assert status.serves == {"tiny": ServedModel("tiny", 0, 1)}
    assert len(read_status({"protocol": 1, "serves": {f"m{number}": {} for number in range(2000)}}).serves) == 500


def test_a_node_that_answers_is_known_anew() -> None:
    judgement = judge(replace(NODE, serves={}), Look("https://10.0.0.3:4000", STATUS), 0, 9.0)

    assert judgement.event is None
    assert judgement.changes["address"] == "https://10.0.0.3:4000"
    assert (judgement.changes["serves"], judgement.changes["running"]) == (SERVES, 2)
    assert (judgement.changes["seen_at"], judgement.changes["problem"]) == (9.0, None)


def test_an_outage_is_one_event_and_its_end_another() -> None:
    """Also when it lasts for an hour: nothing is written more than once, and nothing is to be repaired then."""
    node, events = NODE, list[str | None]()
    for failures in range(1200):
        judgement = judge(node, AWAY, failures, 9.0)
        events.append(judgement.event)
        node = replace(node, **judgement.changes)
    back = judge(node, Look(NODE.address, STATUS), 1200, 9.0)

    assert [event for event in events if event] == ["node_lost"]
    assert events[0] is None, "one lost packet is no outage"
    assert node.problem == f"{LOST}{AWAY.words}"
    assert node.offered == SERVES, "who asks it finds out by itself"
    assert (back.event, back.changes["problem"]) == ("node_returned", None)


@pytest.mark.parametrize("failure", ["other_authority", "refused", "not_fleet"])
def test_who_is_not_the_node_is_offered_nothing(failure: Any) -> None:
    judgement = judge(NODE, Look(NODE.address, failure=failure, words="why"), 0, 9.0)

    assert (judgement.event, judgement.cause) == ("node_lost", "why")
    assert judgement.changes["serves"] == {}


@pytest.mark.parametrize(("protocol", "older"), [(PROTOCOL + 1, "this node"), (PROTOCOL - 1, "it")])
def test_another_protocol_is_refused_in_words(protocol: int, older: str) -> None:
    judgement = judge(NODE, Look(NODE.address, replace(STATUS, protocol=protocol)), 0, 9.0)

    assert judgement.changes["serves"] == {}
    assert judgement.changes["problem"].endswith(
        f"runs mlxq 0.1.0 with fleet protocol {protocol}, and this node knows {PROTOCOL}; upgrade {older}"
    )


def test_a_node_that_lies_about_its_models_is_not_offered_for_them() -> None:
    lying = judge(NODE, Look(NODE.address, STATUS, listed=frozenset({"fast"})), 0, 9.0)
    node = replace(NODE, **lying.changes)

    assert node.problem == "says that it serves tiny, and answers 404"
    assert set(node.offered) == {"fast"}
    unlisted = judge(node, Look(NODE.address, STATUS), 0, 9.0)
    assert unlisted.changes["missing"] == ("tiny",), "a status alone takes nothing back"
    honest = judge(node, Look(NODE.address, STATUS, listed=frozenset(SERVES)), 0, 9.0)
    assert (honest.changes["missing"], honest.changes["problem"]) == ((), None)


def test_a_server_of_openais_api_keeps_its_groups_while_it_has_their_models() -> None:
    served = {"org/a": plan.openai_model("org/a", {"max_model_len": 8192}), "b": plan.openai_model("b", {})}
    given = {"standard": ServedModel("org/a", 0, 1), "fast": ServedModel("gone", 0, 1)}

    assert plan.with_groups(given, served) == {
        "org/a": ServedModel("org/a", 8192, plan.SLOTS),
        "b": ServedModel("b", 0, plan.SLOTS),
        "standard": ServedModel("org/a", 8192, plan.SLOTS),
    }
