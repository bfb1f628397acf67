"""The fan-out of `score`: what waits for what."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from catalog.load import entries
from catalog.machine import Machine
from state import ledger, service, settings
from state.db import Database
from state.errors import DoesNotFit
from state.job import of_chain
from state.paths import Home
from state.stack import Engine, alone
from tasks import kinds, recommend, score, stack_jobs

ENGINE = Engine("standard", "a", "int4", "hub:x/a", 8000, 4096, 1, 1, 1)
STANDARD = alone(ENGINE)
FAST = alone(replace(ENGINE, name="fast", model="b", source="hub:x/b", port=8001))
LONG = alone(replace(ENGINE, name="longctx", port=8002))


def needs(batch: list[score.NewJob]) -> dict[str, list[str]]:
    return {new.label or new.kind: list(map(str, new.needs)) for new in batch}


def test_an_engine_waits_for_its_own_weights_alone() -> None:
    assert needs(score.plan([STANDARD, FAST, LONG], pull=True, start=True)) == {
        "pull hub:x/a": [],
        "pull hub:x/b": [],
        "configure": [],
        "gateway": ["configure"],
        "standard": ["configure", "pull hub:x/a"],
        "fast": ["configure", "pull hub:x/b"],
        "longctx": ["configure", "pull hub:x/a"],
        "smoke_test": ["gateway", "standard", "fast", "longctx"],
    }


def test_an_engine_that_is_added_comes_before_the_starts_and_stops_none_of_them() -> None:
    batch = needs(score.plan([STANDARD, FAST], pull=True, start=True, engine="rapid-mlx"))

    assert batch["add_engine"] == []
    assert batch["fast"] == ["configure", "pull hub:x/b"]
    jobs = score.plan([STANDARD, FAST], pull=True, start=True, engine="rapid-mlx")
    waits = {new.label: list(new.after) for new in jobs if new.kind == "start" and new.after}
    assert waits == {"standard": ["add_engine"], "fast": ["add_engine"]}


def test_without_the_required_engine_nothing_starts() -> None:
    batch = needs(score.plan([STANDARD, FAST], pull=True, start=True, required="vllm-mlx"))

    assert batch["install_engine"] == []
    assert batch["fast"] == ["configure", "install_engine", "pull hub:x/b"]
    assert "install_engine" not in needs(score.plan([STANDARD], pull=True, start=False, required="vllm-mlx"))


@pytest.mark.parametrize(
    ("pull", "start", "labels"),
    [
        (True, False, ["pull hub:x/a", "configure"]),
        (False, True, ["configure", "gateway", "standard", "smoke_test"]),
        (False, False, ["configure"]),
    ],
)
def test_what_was_not_asked_for_is_not_put_in(pull: bool, start: bool, labels: list[str]) -> None:
    assert list(needs(score.plan([STANDARD], pull=pull, start=start))) == labels


def test_the_fan_out_is_one_chain_that_starts_with_the_pulls(db: Database) -> None:
    made = ledger.enqueue_all(db, score.plan([STANDARD, FAST], pull=True, start=True))

    chain = of_chain(db, made["pull hub:x/b"][0])
    assert [job.kind for job in chain if job.state == "queued"] == ["pull", "pull", "configure"]
    assert len(chain) == len(made)


def test_the_page_comes_up_beside_the_gateway_and_nothing_waits_for_it() -> None:
    batch = needs(score.plan([STANDARD], pull=False, start=True, around=["gateway", "page"]))
    assert batch["page"] == ["configure"]
    assert batch["smoke_test"] == ["gateway", "standard"]


def test_a_page_that_was_switched_off_leaves_the_stack(home: Home, db: Database) -> None:
    service.ensure(db, "page", "page", 4001)
    assert (stack_jobs.auxiliary_services(home), stack_jobs.leaving(db)) == (["gateway", "page"], [])
    settings.write(home, "page-port", 0)
    assert (stack_jobs.auxiliary_services(home), stack_jobs.leaving(db)) == (["gateway"], ["page"])


def test_a_second_setup_attaches_to_the_first(db: Database) -> None:
    first = ledger.enqueue_all(db, score.plan([STANDARD], pull=True, start=True))
    second = ledger.enqueue_all(db, score.plan([STANDARD], pull=True, start=True))

    assert {label: pair[0] for label, pair in first.items()} == {label: pair[0] for label, pair in second.items()}
    assert not any(new for _, new in second.values())


def test_every_kind_of_the_fan_out_is_a_kind() -> None:
    assert {new.kind for new in score.plan([STANDARD], pull=True, start=True)} <= set(kinds.KINDS)


def test_a_budget_too_small_says_what_would_do() -> None:
    tiny = Machine("test", "cpu", "Linux", 2 * 10**9, 10**9, 20.0, "measured", 0.1)

    with pytest.raises(DoesNotFit, match="needs"):
        recommend.choose(tiny, entries(), {"intent": "balanced", "budget_pct": 40, "quant": None}, hub=True)


ASKED = {"intent": "balanced", "budget_pct": "auto", "quant": None}


def test_what_is_not_asked_is_as_it_was_asked_before(home: Home) -> None:
    """`setup -y` after `setup --intent agent-fleet --budget-pct 60` asks for the same again."""
    told = {"asked": ASKED | {"intent": "agent-fleet", "budget_pct": 60}, "budget_named": True}

    assert recommend.question(None, None, told, settings.load(home)) == told["asked"]
    assert recommend.question("balanced", 50, told, settings.load(home)) == ASKED | {"budget_pct": 50}
    assert recommend.question(None, None, {}, settings.load(home)) == ASKED


def test_a_stack_that_only_stood_in_may_be_chosen_by_its_name() -> None:
    """What a person agreed to without a Hub comes, also when the Hub is back a moment later."""
    machine = Machine("test", "cpu", "Linux", 16 * 10**9, 12 * 10**9, 20.0, "measured", 0.1)
    choice = dict.fromkeys(("standard", "fast", "longctx"), "smollm2-135m int4")

    assert recommend.choose(machine, entries(), ASKED | {"choice": choice}, hub=True).intent == "built-in"


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("tiers", list(combinations(("standard", "fast", "longctx"), 2)))
def test_of_tiers_that_stand_in_no_other_comes_than_were_chosen(tiers: tuple[str, str], hub: bool) -> None:
    """A fleet gives a machine two tiers, and holds that the stack became these and no third one."""
    choice = dict.fromkeys(tiers, "smollm2-135m int4")
    machine = Machine("test", "cpu", "Linux", 16 * 10**9, 12 * 10**9, 20.0, "measured", 0.1)
    picks = recommend.choose(machine, entries(), ASKED | {"choice": choice}, hub=hub).picks

    assert [(pick.tier, pick.shares) for pick in picks] == [(tiers[0], ""), (tiers[1], tiers[0])]


def test_what_is_reserved_for_other_engines_is_not_given_to_the_tiers() -> None:
    machine = Machine("test", "cpu", "Linux", 32 * 10**9, 24 * 10**9, 20.0, "measured", 0.1)
    whole = recommend.choose(machine, entries(), ASKED, hub=True)
    less = recommend.choose(machine, entries(), ASKED | {"reserved_bytes": 10**9}, hub=True)

    assert less.budget == whole.budget - 10**9
    assert less.total <= less.budget


def test_an_engine_that_no_tier_has_comes_up_with_the_stack() -> None:
    beside = [replace(ENGINE, name="embedding", source="hub:x/e", purpose="embedding")]
    waiting = needs(score.plan([STANDARD], pull=True, start=True, beside=beside))

    assert waiting["embedding"] == ["configure", "pull hub:x/e"]
    assert waiting["smoke_test"] == ["gateway", "standard"]


@pytest.mark.parametrize(
    ("asked", "choice", "hub", "kept"),
    [
        (ASKED, None, True, True),
        (ASKED | {"intent": "agent-fleet"}, None, True, False),
        (ASKED | {"intent": "agent-fleet"}, None, False, True),
        (ASKED, {"standard": "a int4", "fast": "b int4"}, True, True),
        (ASKED, {"standard": "a int8", "fast": "b int4"}, True, False),
        (ASKED, {"standard": "a int8", "fast": "b int4"}, False, False),
    ],
)
def test_a_stack_stays_while_it_answers_the_question(
    asked: dict[str, object], choice: dict[str, str] | None, hub: bool, kept: bool
) -> None:
    now = [STANDARD, FAST]

    assert recommend.answers(now, {"asked": ASKED}, asked, choice, hub=hub) == kept
