"""The guided set-up as a person meets it, on a real terminal of 80 columns."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from support import scene, typist
from support.typist import ends, interrupt, typing

from mlxq.commands import setup
from state import facts, stack
from state.db import Database, open_database
from state.job import listing
from state.paths import Home
from tasks import kinds
from tasks.system import hardware

INTENT = "A number · \\[Enter\\] 1: "
GO = r"\[Enter\] continue · \[c\]hange a model · \[w\]hy these · \[q\]uit without changes: "
TIER = r"Which tier\? 1 standard, 2 fast, 3 longctx · \[Enter\] back: "
MODEL = r"A number or a model name · \[Enter\] keep [^:]*: "
KEEP = r"\[Enter\] keep and start these · \[c\]hoose other models · \[q\]uit without changes: "
TO_EACH_QUESTION: dict[str, list[tuple[str, str]]] = {
    "intent": [],
    "go": [(INTENT, "")],
    "tier": [(INTENT, "2"), (GO, "c")],
    "model": [(INTENT, ""), (GO, "c"), (TIER, "1")],
    "again": [(INTENT, ""), (GO, "c"), (TIER, "2"), (MODEL, "")],
}
LAST = {"intent": INTENT, "go": GO, "tier": TIER, "model": MODEL, "again": GO}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with typist.a_hub() as address:
        yield address


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return tmp_path / "fresh"


@pytest.fixture
def now(home: Home) -> Iterator[Database]:
    """Give the ledger with the real clock."""
    opened = open_database(home)
    yield opened
    opened.close()


def answer(screen: pexpect.spawn[str], steps: list[tuple[str, str]]) -> None:
    for question, said in steps:
        screen.expect(question)
        screen.sendline(said)


def asked(db: Database) -> dict[str, Any]:
    """Give what the task score was asked."""
    return next(job.args for job in listing(db) if job.kind == "score")


def shown(text: str) -> dict[str, str]:
    """Read the last table: "model quant" by tier."""
    rows = re.findall(r"^(standard|fast|longctx) +(\S+) +(\S+) +\d+[KM] ", text, re.MULTILINE)
    return {tier: f"{model} {quant}" for tier, model, quant in rows[-3:]}


def test_embeddings_are_added_by_one_key(home: Home, now: Database, hub: str) -> None:
    screen = typing(home.root, hub, "setup", "--timeout", "0")
    answer(screen, [(INTENT, "")])
    screen.expect(r"\[e\] adds embeddings")
    answer(screen, [(GO, "e")])
    shown_next = screen.expect([r"With embeddings: qwen3-embedding-0.6b int4", r"\[Enter\] change it"])
    if shown_next == 1:  # the tiers give way
        screen.sendline("")
        screen.expect(r"With embeddings: qwen3-embedding-0.6b int4")
    answer(screen, [(GO, "")])

    assert ends(screen)[0] == 5
    assert asked(now)["retrieval"] == {"embedding": "qwen3-embedding-0.6b:int4"}


def test_embeddings_are_removed_by_the_same_key(home: Home, now: Database, hub: str) -> None:
    """What the stack uses has them in it while they are chosen."""
    screen = typing(home.root, hub, "setup", "--timeout", "0")
    answer(screen, [(INTENT, ""), (GO, "e")])
    if screen.expect([r"\[e\] removes the embeddings", r"\[Enter\] change it"]):  # the tiers give way
        screen.sendline("")
        screen.expect(r"\[e\] removes the embeddings")
    text = screen.before or ""
    assert "With embeddings: qwen3-embedding-0.6b int4, " in text
    with_them = re.findall(r"Uses (\S+ GB) of (\S+ GB)", text)[-1]
    answer(screen, [(GO, "e")])
    screen.expect(r"\[e\] adds embeddings")
    without = re.findall(r"Uses (\S+ GB) of (\S+ GB)", screen.before or "")[-1]
    answer(screen, [(GO, "")])

    assert ends(screen)[0] == 5
    assert "retrieval" not in asked(now)
    assert with_them[1] == without[1]


def test_what_a_person_accepts_is_what_the_worker_is_asked_for(home: Home, now: Database, hub: str) -> None:
    screen = typing(home.root, hub, "setup", "--timeout", "0")
    answer(screen, [(INTENT, "")])
    screen.expect(GO)
    table = shown(screen.before or "")
    screen.sendline("")
    code, _ = ends(screen)

    assert code == 5
    assert asked(now) == {"intent": "balanced", "pull": True, "start": True, "choice": table}
    assert set(table) == {"standard", "fast", "longctx"}


def test_a_changed_model_goes_through_the_chain_with_the_tiers_that_share_it(
    home: Home, now: Database, hub: str
) -> None:
    """Tiers of other models stay as they were."""
    screen = typing(home.root, hub, "setup", "--timeout", "0")
    answer(screen, [(INTENT, "")])
    screen.expect(GO)
    before = shown(screen.before or "")
    screen.sendline("c")
    answer(screen, [(TIER, "standard")])
    screen.expect(MODEL)
    offered = re.search(r"^2 +(\S+) +(\S+) ", screen.before or "", re.MULTILINE)
    assert offered
    screen.sendline("2")
    screen.expect(GO)
    model = " ".join(offered.groups())
    changed = {
        tier: model if shown_before == before["standard"] else shown_before for tier, shown_before in before.items()
    }
    assert shown(screen.before or "") == changed
    answer_named = [("", "c"), (TIER, "2"), (MODEL, "no-such-model"), (MODEL, "qwen3.5-2b int8")]
    answer(screen, answer_named)
    answer(screen, [(GO, "")])
    ends(screen)

    assert asked(now)["choice"] == changed | {"fast": "qwen3.5-2b int8"}


def test_a_model_must_fit_beside_the_others(fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup", machine="m4-16")
    answer(screen, [(INTENT, "")])
    answer(screen, [(GO, "c"), ("Which tier\\?", "1"), (MODEL, "qwen3.5-27b int8")])
    screen.expect(r"These models need \S+ GB together; the budget is \S+ GB: \S+ [GM]B too little\.")

    assert interrupt(screen)[0] == 130


@pytest.mark.parametrize("question", TO_EACH_QUESTION)
def test_ctrl_c_at_every_question_changes_nothing_and_says_so(fresh: Path, hub: str, question: str) -> None:
    screen = typing(fresh, hub, "setup")
    answer(screen, TO_EACH_QUESTION[question])
    screen.expect(LAST[question])
    code, last = interrupt(screen)

    assert code == 130
    assert "Nothing was changed." in last
    assert "Next: mlxq setup" in last
    assert not fresh.exists()


def test_ctrl_c_while_it_looks_at_the_machine_changes_nothing(fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup")
    screen.expect("Inspecting this machine.")
    code, last = interrupt(screen)

    assert (code, "Nothing was changed." in last, fresh.exists()) == (130, True, False)


def test_a_refusal_changes_nothing(fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup")
    answer(screen, [(INTENT, ""), (GO, "q")])
    code, last = ends(screen)

    assert (code, "Nothing was changed." in last, fresh.exists()) == (130, True, False)


def test_a_wrong_key_is_answered_with_the_right_ones(fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup")
    answer(screen, [(INTENT, "7"), ("'7' must be one of: Enter, 1, 2", "agent-fleet"), (GO, "w")])
    screen.expect("standard: [^\n]+, quality [^\n]+")
    screen.expect("mlxq models --recommend --explain")
    screen.sendeof()

    assert ends(screen)[0] == 130


def test_a_set_up_that_is_under_way_is_followed_without_a_question(home: Home, now: Database, hub: str) -> None:
    arguments = setup.question(None, None, no_pull=False, no_start=False)
    setup.begin(now, [kinds.new("detect"), kinds.new("score", arguments, needs=["detect"])])
    screen = typing(home.root, hub, "setup", "--timeout", "0")
    code, last = ends(screen)

    assert code == 5
    assert "Setup is already running (job 1); following it." in last
    assert [job.kind for job in listing(now)] == ["score", "detect"]


def test_a_stack_that_is_here_stays_by_default(home: Home, now: Database, hub: str) -> None:
    scene.set_up(now)
    screen = typing(home.root, hub, "setup", "--timeout", "0")
    answer(screen, [(KEEP, "")])
    ends(screen)

    assert asked(now)["keep"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (
            {"asked": {"intent": "balanced", "budget_pct": 50, "quant": None}},
            "The budget or quant in the settings has changed",
        ),
        ({"builtin": True}, "The built-in model is installed, because the Hub was unreachable"),
    ],
)
def test_a_stack_that_answers_another_question_is_not_the_default(
    home: Home, now: Database, hub: str, told: dict[str, Any], why: str
) -> None:
    scene.set_up(now)
    facts.put(now, "stack", told)
    screen = typing(home.root, hub, "setup")
    screen.expect(why)
    screen.expect(INTENT)

    assert interrupt(screen)[0] == 130


def test_without_a_hub_the_stack_that_is_here_is_the_only_one(home: Home, now: Database) -> None:
    scene.set_up(now)
    screen = typing(home.root, "http://127.0.0.1:9", "setup", "--intent", "agent-fleet", "--timeout", "0")
    answer(screen, [(r"\[Enter\] start these · \[q\]uit without changes: ", "")])
    ends(screen)

    assert asked(now)["keep"]


def test_without_a_hub_a_fresh_home_is_offered_the_built_in_model(fresh: Path) -> None:
    """There is one choice, so nobody is asked what the models are for."""
    screen = typing(fresh, "http://127.0.0.1:9", "setup")
    screen.expect("No Hub is in reach: every tier serves the built-in model.")
    answer(screen, [(r"\[Enter\] continue · \[w\]hy these · \[q\]uit without changes: ", "q")])

    assert ends(screen)[0] == 130


def test_a_new_choice_tells_what_becomes_of_the_stack_that_is_here(home: Home, now: Database, hub: str) -> None:
    scene.set_up(now)
    screen = typing(home.root, hub, "setup")
    answer(screen, [(KEEP, "c"), (INTENT, ""), (GO, "q")])
    screen.expect("Nothing was changed.")
    ends(screen)
    told = stack.tiers(now)

    assert [tier.model for tier in told] == [model for _, model, *_ in scene.TIERS]
    assert listing(now) == []


def test_the_differences_name_every_tier_once(home: Home, now: Database, hub: str) -> None:
    scene.set_up(now)
    screen = typing(home.root, hub, "setup")
    answer(screen, [(KEEP, "c"), (INTENT, "")])
    screen.expect(r"Changes to the current stack:((?:\r*\n  [^\r\n]+)+).*" + GO)
    assert isinstance(screen.match, re.Match)
    lines = [line for line in screen.match.group(1).splitlines() if line.strip()]
    interrupt(screen)

    assert [line.split()[0] for line in lines] == ["standard", "fast", "longctx"]
    assert all(
        re.search(r" (is kept.*|is removed|is replaced|is replaced by \S+ \S+)(; it shares the engine of \S+)?$", line)
        for line in lines
    )


def test_with_json_the_change_is_shown_beside_it_before_it_is_asked_for(
    home: Home, now: Database, hub: str, tmp_path: Path
) -> None:
    scene.set_up(now)
    recorded = hardware.parse_fixture((typist.MACHINES / "m4-max-128.txt").read_text())
    facts.put(now, "machine", recorded.as_row())
    told = tmp_path / "told.json"
    words = typist.argv("m4-max-128", "setup", "--remove", "fast", "--json")
    screen = pexpect.spawn(
        "/bin/sh", ["-c", f"{shlex.join(words)} > {told}"], env=typist.environment(home.root, hub), encoding="utf-8"
    )
    answer(screen, [(r"-  fast  +qwen3\.5-4b(.|\s)+Make this change \[Y/n\]: ", "n")])
    code, last = ends(screen)

    assert (code, "Nothing was changed." in last, told.read_text()) == (130, True, "")


def test_a_download_that_the_disk_cannot_hold_cannot_be_accepted(fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup", free_bytes=20 * 10**9)
    answer(screen, [(INTENT, ""), ("has only 18 GB free", ""), (r"\n\[c\]hange a model", "q")])

    assert ends(screen)[0] == 130


@pytest.mark.parametrize("machine", ["m1-pro-16", "m4-pro-64", "m2-ultra-192"])
def test_no_line_is_wider_than_80_columns(machine: str, fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup", machine=machine, columns=200)
    answer(screen, [(INTENT, ""), (GO, "c"), (TIER, "1")])
    screen.expect(MODEL)
    drawn = (screen.before or "").splitlines()
    interrupt(screen)

    assert [line for line in drawn if len(line) > 80] == []


def test_a_dumb_terminal_gets_plain_words_only(fresh: Path, hub: str) -> None:
    screen = typing(fresh, hub, "setup", TERM="dumb", NO_COLOR="")
    screen.expect(INTENT)
    drawn = screen.before or ""
    answer(screen, [("", "")])
    screen.expect(GO)
    drawn += screen.before or ""
    _, last = interrupt(screen)

    assert "\x1b" not in drawn + last
