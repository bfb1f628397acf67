"""The nodes of a fleet as commands show them; tests/process/test_fleet.py makes real ones."""

from __future__ import annotations

import json

import pytest

from mlxq import cli
from mlxq.doctor import checks
from mlxq.top import draw
from mlxq.web import nodes
from state import event, fleet
from state.db import Database
from state.fleet import Node, ServedModel

SERVES = {name: ServedModel(name, 65_536, 4, 41.0) for name in ("fast", "standard", "longctx", "embedding", "rerank")}


def test_nodes_are_shown_wherever_the_state_is(rows: Database, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.put(rows, Node("studio", "mlxq", "https://10.0.0.2:4000", serves=SERVES, seen_at=rows.now(), running=2))
    fleet.put(rows, Node("desk", "mlxq", "https://10.0.0.3:4000", problem="away: 10.0.0.3:4000 does not answer"))
    fleet.put(rows, Node("box", "openai", "http://10.0.0.9:8000", state="draining", serves=SERVES, seen_at=rows.now()))
    assert cli.run(["node", "list"]) == cli.run(["status"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "studio  healthy   fast standard longctx embedding +1        2",
        "desk    down",
        "box     draining",
        "away: 10.0.0.3:4000 does not answer",
    ):
        assert shown.count(line) == 2, shown
    assert cli.run(["status", "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert [(node["name"], node["state"], len(node["serves"])) for node in nodes] == [
        ("box", "draining", 0),
        ("desk", "down", 0),
        ("studio", "healthy", 5),
    ]
    texts = [finding.text for finding in checks._network(rows.home) if finding]
    assert texts == [
        "the node box answers",
        "the node desk: away: 10.0.0.3:4000 does not answer",
        "the node studio answers",
    ]


def test_an_outage_is_explained_and_a_view_of_80_columns_cuts_no_figure(
    rows: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    away = "away: 10.0.0.3:4000 does not answer: nothing within 2 s"
    fleet.put(rows, Node("studio", "mlxq", "https://10.0.0.2:4000", serves=SERVES, seen_at=rows.now(), running=12))
    fleet.put(rows, Node("desk", "mlxq", "https://10.0.0.3:4000", problem=away, seen_at=rows.now()))
    event.record(rows, "node_lost", subject="desk", cause=away.removeprefix("away: "))
    assert cli.run(["why", "desk"]) == cli.run(["why"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("desk Node away 10.0.0.3:4000 does not answer: nothing within 2 s") == 2
    assert shown.count(f"desk (down): {away}.") == 2
    assert cli.run(["why", "nosuch"]) == 1

    lines = [line.plain for line in draw._nodes(nodes.listing(rows), 80)]
    assert all(len(line) <= 80 for line in lines), lines
    assert [line.split()[0] for line in lines] == ["NODE", "desk", "studio"]
    assert "12" in lines[2].split()


def test_what_runs_on_this_node_alone_is_not_sent(rows: Database, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.put(rows, Node("box", "openai", "http://10.0.0.9:8000"))
    for words, code, text in (
        (["--node", "box", "setup"], 2, "`setup` does not run on another node"),
        (["--node", "box"], 2, "--node needs a command"),
        (["--node", "box", "jobs"], 2, "box speaks OpenAI's API alone"),
        (["--node", "none", "jobs"], 1, "There is no node 'none'; there is: box."),
        (["--node", "box", "rm", "tiny"], 2, "stdin is not a terminal"),
        (["node", "join", "mlxq1.x"], 2, "This is no invitation"),
        (["node", "add", "--openai", "http://10.0.0.9", "--key", "sk-1"], 2, "A key in a command is seen by others."),
        (["node", "drain", "none"], 1, "There is no node 'none'"),
    ):
        assert cli.run(words) == code, words
        assert text in capsys.readouterr().err
