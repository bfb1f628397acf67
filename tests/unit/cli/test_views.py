"""How rows look: tables, sizes, times, jobs on their way."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mlxq import job_view, render
from mlxq.commands import setup
from state import ledger
from state.db import Database
from state.errors import EngineFailed
from state.job import Claim, Job, JobState, of_chain
from tasks import kinds


def chain(db: Database) -> list[Job]:
    ledger.enqueue_all(
        db,
        [
            kinds.new("pull", {"source": "hub:org/name"}),
            kinds.new("configure", needs=["pull"]),
            kinds.new("smoke_test", needs=["configure"]),
        ],
    )
    return of_chain(db, 1)


def claim(db: Database, lane: str = "heavy") -> Claim:
    held = ledger.claim(db, lane, set(kinds.KINDS), "a/1/1")
    assert held
    return held


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.04, "0.0s"), (59.9, "59s"), (61, "1m01s"), (3720, "1h02m"), (90000, "1d01h"), (-5, "0.0s")],
)
def test_spans_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert render.span(seconds) == text


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["NAME", "N"], [["a" * 200, 1], ["b", None]], right=(1,))

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "a" * 200 + "  1"
    assert lines[2] == "b" + " " * 201 + "-"


def test_the_tree_goes_as_deep_as_the_needs(db: Database) -> None:
    assert job_view.depths(chain(db)) == {1: 0, 2: 1, 3: 2}


def test_without_a_terminal_each_step_is_one_line(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    view = job_view.PlainView()
    view.show(chain(db))
    held = claim(db)
    ledger.report(db, held, "fetching", {"done": 5, "total": 10, "unit": "bytes"})
    view.show(of_chain(db, 1))
    view.show(of_chain(db, 1))
    ledger.fail(db, held, EngineFailed("No."))
    view.show(of_chain(db, 1))

    assert capsys.readouterr().err.splitlines() == [
        "▸ pull name: fetching, 50% of 10 B",
        "✗ pull name: No.",
        "- configure: Job 1 did not succeed.",
        "- smoke test: Job 1 did not succeed.",
    ]


def test_the_failure_of_a_job_that_is_followed_alone_is_left_to_the_commands_error(
    db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    chain(db)
    ledger.fail(db, claim(db), EngineFailed("No."))
    job_view.PlainView().show(of_chain(db, 1)[:1])

    assert capsys.readouterr().err == "✗ pull name: failed\n"


def test_json_lines_tell_each_change_once(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    view = job_view.JsonView()
    view.show(chain(db))
    view.show(of_chain(db, 1))
    claim(db)
    view.show(of_chain(db, 1))

    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["job"]["id"], each["job"]["state"]) for each in said] == [
        (1, "queued"),
        (2, "blocked"),
        (3, "blocked"),
        (1, "running"),
    ]
    assert {each["schema_version"] for each in said} == {1}


def test_a_rate_is_of_the_last_seconds_and_an_eta_waits_for_ten(db: Database) -> None:
    now = 0.0
    pace = job_view.Pace(lambda: now)
    for second in range(21):
        now = float(second)
        pace.see(second * 100.0 if second <= 10 else 1000.0 + (second - 10) * 50)
        if second == 5:
            assert pace.eta_s(500, 2000) is None

    assert pace.rate == pytest.approx(50.0)
    assert pace.eta_s(1500, 2000) == pytest.approx(10.0)


def test_a_job_that_waits_for_another_try_says_when_and_why(db: Database) -> None:
    chain(db)
    ledger.retry_later(db, claim(db), EngineFailed("The host hung up."), 1e9)

    assert job_view.note(of_chain(db, 1)[0]).endswith("The host hung up.")
    assert job_view.note(of_chain(db, 1)[0]).startswith("retry in ")


def jobs(*done: str, live: Sequence[str] = ()) -> list[Job]:
    blank = Job(**dict.fromkeys(Job.__dataclass_fields__, None) | {"args": {}})  # pyright: ignore[reportArgumentType] (only what remarks reads)
    ended = [
        replace(
            blank, kind=name.split()[0], args={"service": name.partition(" ")[2]}, state=JobState.SUCCEEDED, result=None
        )
        for name in done
    ]
    return ended + [replace(blank, kind=name, state=JobState.RUNNING) for name in live]


def test_setup_says_that_a_tier_answers_while_others_are_pulled() -> None:
    assert setup.remarks(jobs("start fast", live=["pull"])) == []
    assert setup.remarks(jobs("start fast", "start gateway")) == []
    assert "The tier fast is ready" in setup.remarks(jobs("start fast", "start gateway", live=["pull"]))[0]


def test_setup_names_the_models_unless_a_person_chose_them() -> None:
    result = {"explain": "Intent balanced.\nWhy.", "kept": False, "tiers": {"fast": "a int4"}, "sizes": {}}
    (score,) = jobs("score")
    ended = replace(score, kind="score", result=result)

    assert setup.remarks([ended]) == ["Intent balanced. Chosen:\n  fast       a int4"]
    assert setup.remarks([replace(ended, args={"choice": {"fast": "a int4"}})]) == []


DRAW = """
import sys
from mlxq import job_view
from state.db import read_database
from state.job import of_chain
from state.paths import get_home
view = job_view.view()
view.show(of_chain(read_database(get_home()), 1))
view.close()
print(type(view).__name__)
"""


def drawn(terminal: str, **environment: str) -> tuple[str, str]:
    """Run a view with stderr on a real pseudo-terminal of 80 columns; give the view's name and what was drawn."""
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        check=True,
        env=os.environ | {"TERM": terminal} | environment,
    )
    os.close(slave)
    with io.FileIO(master) as screen:
        text = screen.read(65536).decode()
    return done.stdout.strip(), text


def test_on_a_terminal_the_tree_is_drawn_in_colour_within_its_width(db: Database) -> None:
    chain(db)
    claim(db)

    name, text = drawn("xterm-256color")

    assert name == "LiveView"
    assert "▸ pull name" in text
    assert "\x1b[32m" in text


def test_no_color_is_honoured(db: Database) -> None:
    chain(db)
    claim(db)

    _, text = drawn("xterm-256color", NO_COLOR="1")

    assert "\x1b[32m" not in text
    assert "▸ pull name" in text


def test_a_dumb_terminal_gets_plain_lines(db: Database) -> None:
    chain(db)
    claim(db)

    name, text = drawn("dumb")

    assert name == "PlainView"
    assert "\x1b" not in text


def test_a_line_comes_when_something_changed_and_not_for_a_byte_more(
    db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    chain(db)
    held, view = claim(db), job_view.PlainView()
    for done in (50, 51, 59, 60, 61):
        ledger.report(db, held, "fetching", {"done": done, "total": 100, "unit": "bytes", "resumed": 43})
        view.show(of_chain(db, 1))

    assert capsys.readouterr().err.splitlines() == [
        "▸ pull name: fetching, resumed at 43%, 50% of 100 B",
        "▸ pull name: fetching, 60% of 100 B",
    ]


def test_the_total_of_all_pulls_is_known_before_each_has_begun(db: Database) -> None:
    ledger.enqueue(db, kinds.new("score"))
    batch = [kinds.new("pull", {"source": f"hub:x/{name}"}, label=name) for name in "ab"]
    ledger.succeed(db, claim(db, "ops"), {"sizes": {"hub:x/a": 300, "hub:x/b": 100}}, batch)
    assert job_view.overall(of_chain(db, 1)) == (0, 400)

    held = claim(db)
    ledger.report(db, held, "fetching", {"done": 60, "total": 320, "unit": "bytes"})
    assert job_view.overall(of_chain(db, 1)) == (60, 420)

    ledger.succeed(db, held, {})
    assert job_view.overall(of_chain(db, 1)) == (320, 420)


def test_one_pull_is_its_own_total(db: Database) -> None:
    assert job_view.overall(chain(db)) == (0, 0)
