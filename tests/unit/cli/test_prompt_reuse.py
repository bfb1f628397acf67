"""What every surface says of the prompts that a tier does not read again."""

from __future__ import annotations

import time

import pytest

from mlxq import prompt_reuse
from mlxq.doctor import checks, rules
from mlxq.doctor.rules import Finding
from mlxq.prompt_reuse import UNKNOWN, PromptReuse
from state import facts, service, stack
from state.db import Database
from state.metrics import usage
from state.metrics.usage import Usage
from state.stack import Engine, Tier

TIER = Engine("standard", "qwen3.5-9b", "int4", "hub:x/y", 8000, 32_768, 2**30, 2**28, 2)


@pytest.mark.parametrize(
    ("reuse", "text", "rereads"),
    [
        (UNKNOWN, "", False),
        (PromptReuse(0.934, 0.99), "93%", False),
        (PromptReuse(None, 0.0), "reads every prompt again", True),
        (PromptReuse(0.02, 0.1), "2%, reads every prompt again", True),
    ],
)
def test_it_is_told_as_a_share_and_in_words(reuse: PromptReuse, text: str, rereads: bool) -> None:
    assert (reuse.text, reuse.rereads) == (text, rereads)


def test_a_week_is_summed_by_tier(db: Database) -> None:
    """The share is the tier's, the second turn its engine's; a card of the page has all the tiers of one."""
    quick = Engine("fast", "qwen3.5-2b", "int4", "hub:x/z", 8001, 8192, 1, 1, 1)
    stack.replace(db, [TIER, quick, Tier("longctx", TIER)])
    service.ensure(db, "standard", "engine", 8000)
    service.ensure(db, "fast", "engine", 8001)
    service.ensure(db, "gateway", "gateway", 4000)
    days = [time.strftime("%Y-%m-%d", time.gmtime(db.now() - back * 86_400)) for back in (0, 3, 9)]
    usage.add(db, [Usage(day, "app", "standard", 1, prompt_tokens=1000, cached_tokens=600) for day in days[:2]])
    usage.add(db, [Usage(days[2], "app", "standard", 1, prompt_tokens=10_000)])
    usage.add(db, [Usage(days[0], "app", "longctx", 1, prompt_tokens=2000, cached_tokens=2000)])
    service.update(db, "standard", reused=0.98)

    rows = {row.name: row for row in service.listing(db)}
    assert prompt_reuse.of_tiers(db, stack.tiers(db), rows) == {
        "standard": PromptReuse(0.6, 0.98), "fast": UNKNOWN, "longctx": PromptReuse(1.0, 0.98)
    }  # fmt: skip
    sharing = stack.served_by(stack.tiers(db), "standard")
    assert prompt_reuse.of_engine(db, service.get(db, "standard"), sharing) == PromptReuse(0.8, 0.98)
    assert prompt_reuse.of_engine(db, service.get(db, "gateway"), []) == UNKNOWN


def test_a_start_with_another_command_line_makes_it_unknown(db: Database) -> None:
    service.ensure(db, "standard", "engine", 8000)
    service.request_start(db, "standard", ["engine"], "one", 8000)
    service.update(db, "standard", reused=0.98, state="stopped")
    service.request_start(db, "standard", ["engine"], "one", 8000)
    assert service.get(db, "standard").reused == 0.98

    service.update(db, "standard", state="stopped")
    service.request_start(db, "standard", ["engine"], "another", 8000)
    assert service.get(db, "standard").reused is None


def found(db: Database, intent: str, reused: float | None, release: str) -> list[Finding | None]:
    """Return what the doctor finds of a stack with one tier."""
    stack.replace(db, [TIER])
    facts.put(db, "stack", {"asked": {"intent": intent}})
    service.ensure(db, "standard", "engine", 8000)
    service.update(db, "standard", reused=reused, release=release)
    return list(checks.CHECKS["reuse"](db.home))


def test_the_doctor_warns_a_fleet_of_agents_with_the_engine_that_helps(db: Database) -> None:
    (finding,) = found(db, "agent-fleet", 0.0, "vllm-mlx 0.6.0")

    assert finding == rules.warning(
        "reuse",
        "standard reads every prompt again: each turn of an agent waits for all of it",
        "mlxq engine install rapid-mlx",
    )


def test_where_the_best_engine_reads_again_it_is_measured_next(db: Database) -> None:
    (finding,) = found(db, "agent-fleet", 0.0, "rapid-mlx 0.16.10")

    assert finding
    assert finding.hint == "mlxq bench standard"


def test_without_agents_it_is_said_and_no_warning(db: Database) -> None:
    assert found(db, "balanced", 0.0, "vllm-mlx 0.6.0") == [rules.passed("reuse", "standard reads every prompt again")]
    assert found(db, "agent-fleet", 0.97, "rapid-mlx 0.16.10") == [
        rules.passed("reuse", "standard read 3% of a conversation again at its second turn")
    ]


def test_before_it_was_asked_nothing_is_said(db: Database) -> None:
    assert found(db, "agent-fleet", None, "") == [None]
