"""The recommendation fits, is fast where it says so, uses what there is, and is what a person who knows would say."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import share
from support.machines import GIB, KNOWN, MACS, named

from catalog.fit import cache_bytes, memory
from catalog.intent import AGENTS, FAST, INTENTS, LONGCTX, STANDARD, TIERS
from catalog.machine import Machine
from catalog.offer import full_attention, lasts
from catalog.pick import Recommendation
from catalog.problems import TooSmall
from catalog.quality import quality, worth
from catalog.score import alternatives, budget, builtin, compose, followers, recommend
from catalog.search import FASTER
from catalog.speed import Measured, predict

CPU = Machine("AMD EPYC", "cpu", "Linux 6", 16 * GIB, 12 * GIB, 20.0, "measured", 0.1, cpu_cores=2)
H200 = Machine("NVIDIA H200", "cuda", "Linux 6", 141 * GIB, 126 * GIB, 4800.0, "table", 989.0)
MACHINES = st.sampled_from([*MACS, CPU, H200])
INTENT = st.sampled_from(sorted(INTENTS))


@functools.cache
def chosen(machine: Machine, intent: str = "balanced") -> Recommendation:
    """Recommend for a machine as it is; many tests look at the same recommendations."""
    return recommend(machine, KNOWN, intent)


def enough(machine: Machine, intent: str, limit: int) -> Recommendation:
    """Recommend within the limit, or within the bytes that TooSmall asks for."""
    try:
        return recommend(machine, KNOWN, intent, budget_bytes=limit)
    except TooSmall as told:
        return recommend(machine, KNOWN, intent, budget_bytes=told.needs_bytes)


@settings(deadline=None, max_examples=share(150))
@given(machine=MACHINES, intent=INTENT, share=st.floats(0.01, 1.0))
def test_any_machine_budget_and_intent(machine: Machine, intent: str, share: float):
    """Never over the budget while one full window is read; windows, speeds, tools and quality as the tiers demand."""
    limit = int(share * machine.usable_bytes)
    made = enough(machine, intent, limit)
    if made.budget != limit:
        assert made.total <= made.budget
        assert made.budget > limit
        return

    assert made.total <= made.budget == limit
    assert list(TIERS) == [pick.tier for pick in made.picks]
    assert len({pick.model for pick in made.engines}) == len(made.engines)
    for pick in made.picks:
        model = KNOWN[pick.model]
        assert memory(model, pick.quant, pick.context, pick.concurrency, pick.prefill_step) == pick.memory
        assert pick.context <= model.context
        assert model.tool_calling or intent == "balanced"
        assert not model.retired
    for pick in made.engines:
        full = cache_bytes(KNOWN[pick.model], pick.context)
        assert pick.cache_bytes >= full if full_attention(KNOWN[pick.model]) else not pick.cache_bytes


@settings(deadline=None, max_examples=share(100))
@given(machine=MACHINES, intent=INTENT, share=st.floats(0.05, 1.0))
def test_each_engine_earns_its_place(machine: Machine, intent: str, share: float):
    """A fast of its own is faster, a longctx of its own sees at least twice as far, and standard is the cleverest."""
    made = enough(machine, intent, int(share * machine.usable_bytes))
    standard, fast, longctx = (made.tier(tier) for tier in TIERS)

    assert fast.shares or fast.speed.decode >= FASTER * standard.speed.decode
    assert longctx.shares or longctx.context >= 2 * standard.context
    assert longctx.shares or lasts(KNOWN[longctx.model])
    assert longctx.context >= standard.context
    assert worth(KNOWN[standard.model], standard.quant) >= worth(KNOWN[longctx.model], longctx.quant)


@settings(deadline=None, max_examples=share(60))
@given(machine=st.sampled_from(MACS), intent=INTENT)
def test_the_stack_holds_while_any_full_window_is_read(machine: Machine, intent: str):
    """Within Metal's own limit, not only within the part of it that is planned for."""
    made = chosen(machine, intent)

    for reader in made.engines:
        others = sum(pick.resident for pick in made.engines if pick is not reader)
        assert others + reader.bytes <= machine.usable_bytes
    assert made.over == max(0, made.at_once - machine.usable_bytes)


@pytest.mark.parametrize(("intent", "least", "window"), [("balanced", 16, 32_768), (AGENTS, 24, 65_536)])
@pytest.mark.parametrize("machine", MACS, ids=lambda one: f"{one.chip}-{one.gpu_cores}-{one.memory_bytes >> 30}")
def test_standard_takes_what_agents_send(machine: Machine, intent: str, least: int, window: int):
    """Claude Code and Codex send 20K tokens before the first word."""
    if machine.memory_bytes < least * GIB:
        pytest.skip(f"the demand holds from {least} GB")

    assert chosen(machine, intent).tier(STANDARD).context >= window


@settings(deadline=None, max_examples=share(60))
@given(machine=st.sampled_from(MACS), intent=INTENT)
def test_a_full_window_can_be_read_in_time(machine: Machine, intent: str):
    """With the speed of a prompt of that length, and well within the time that the engine allows an answer."""
    for pick in chosen(machine, intent).engines:
        speed = predict(machine, KNOWN[pick.model], pick.quant, pick.context)
        assert pick.reading_s == pytest.approx(pick.context / speed.prompt)
        assert pick.reading_s <= 2 * 600


@pytest.mark.parametrize("intent", sorted(INTENTS))
@pytest.mark.parametrize("machine", MACS, ids=lambda one: f"{one.chip}-{one.gpu_cores}-{one.memory_bytes >> 30}")
def test_every_mac_that_was_sold_gets_a_stack(machine: Machine, intent: str):
    """Also those of 8 GB; up to 36 GB one or two engines, which take most of what there is."""
    made = chosen(machine, intent)

    assert made.total <= made.budget
    if machine.memory_bytes <= 36 * GIB:
        assert len(made.engines) <= 2
        assert made.total >= 0.7 * made.budget


@pytest.mark.parametrize(
    ("chip", "gib", "standard"),
    [
        ("M1", 8, "qwen3.5-2b"),
        ("M4", 16, "qwen3.5-9b"),
        ("M4", 32, "gemma-4-26b-a4b"),
        ("M4 Max", 36, "qwen3.8-27b"),
        ("M4 Pro", 24, "qwen3.5-9b"),
        ("M4 Max", 64, "qwen3.8-27b"),
        ("M5 Max", 128, "qwen3.8-27b"),
        ("M3 Ultra", 512, "qwen3.8-27b"),
    ],
)
def test_the_standard_model_is_what_people_who_know_run(chip: str, gib: int, standard: str):
    assert standard == chosen(named(chip, gib)).tier(STANDARD).model


def test_agent_fleet_prefers_speed():
    """On an M4 Pro with 64 GB a fleet of agents gets the mixture of experts, a person the dense 27B."""
    balanced, fleet = (chosen(named("M4 Pro", 64), intent).tier(STANDARD) for intent in INTENTS)

    assert fleet.speed.decode > 2 * balanced.speed.decode
    assert fleet.concurrency > balanced.concurrency


@pytest.mark.parametrize("machine", [CPU, H200], ids=["cpu", "cuda"])
def test_a_machine_that_is_no_mac_gets_a_stack_too(machine: Machine):
    assert len(chosen(machine).picks) == 3


def test_a_budget_too_small_says_what_the_smallest_stack_needs():
    with pytest.raises(TooSmall) as told:
        recommend(named("M4", 16), KNOWN, budget_bytes=GIB)

    assert told.value.budget_bytes == GIB
    assert 1e9 < told.value.needs_bytes < 3e9


def test_one_tier_alone_may_have_the_whole_budget():
    alone = recommend(named("M4", 16), KNOWN, tiers=(STANDARD,))

    assert alone.tier(STANDARD).model == "qwen3.5-9b"


def test_a_quant_that_was_asked_for_is_kept_to():
    made = recommend(named("M4 Max", 128), KNOWN, quant="int8")

    assert {"int8"} == {pick.quant for pick in made.picks}


def test_a_quant_no_model_has_is_an_error():
    with pytest.raises(ValueError, match="int3"):
        recommend(named("M4 Max", 128), KNOWN, quant="int3")


def test_a_benchmark_on_this_machine_changes_the_choice():
    """Where a 27B was measured to crawl, it is no standard any more."""
    machine = named("M4 Max", 64)
    crawling = [Measured("qwen3.8-27b", "int4", 4096, 3.0, 20.0)]

    assert recommend(machine, KNOWN, measured=crawling).tier(STANDARD).model != "qwen3.8-27b"


def test_it_explains_itself():
    """Why these, what was next, what more memory would change."""
    made = chosen(named("M4 Max", 64))

    for pick in made.picks:
        assert f"{pick.tier}: {pick.model} {pick.quant}" in made.explain
        assert pick.runner_up in made.explain
        assert pick.reasons
    assert "With 64.8 GB: " in made.explain


def test_without_a_hub_one_engine_of_the_built_in_model_serves_every_tier():
    made = builtin(CPU, KNOWN)

    assert {"smollm2-135m"} == {pick.model for pick in made.picks}
    assert list(TIERS) == [pick.tier for pick in made.picks]
    assert [pick.tier for pick in made.engines] == [STANDARD]
    assert made.total < 1.5e9


def test_the_built_in_stack_too_may_not_fit():
    with pytest.raises(TooSmall):
        builtin(dataclasses.replace(CPU, usable_bytes=GIB), KNOWN)


def test_no_unrated_model_counts_above_a_rated_one():
    rated = [quality(model).points for model in KNOWN.values() if quality(model).benchmark]
    unrated = [quality(model).points for model in KNOWN.values() if not quality(model).benchmark]

    assert max(unrated) < min(rated)


def test_fewer_bits_are_never_worth_more():
    """The order of the quants by worth is their order by size."""
    for model in KNOWN.values():
        sizes = sorted(model.quants.values(), key=lambda quant: quant.bytes)
        points = [worth(model, quant.name) for quant in sizes]
        assert sorted(points) == points


def models(made: Recommendation) -> dict[str, tuple[str, str]]:
    return {pick.tier: (pick.model, pick.quant) for pick in made.picks}


@settings(max_examples=share(30), deadline=None)
@given(machine=MACHINES, intent=INTENT)
def test_a_stack_composed_of_what_was_recommended_fits_and_is_the_same_models(machine: Machine, intent: str) -> None:
    told = enough(machine, intent, budget(machine))

    made = compose(machine, KNOWN, models(told), intent, budget_bytes=told.budget)

    assert models(made) == models(told)
    assert made.total <= made.budget


@settings(max_examples=share(30), deadline=None)
@given(machine=st.sampled_from(MACS), tier=st.sampled_from(TIERS), data=st.data())
def test_every_alternative_can_be_composed(machine: Machine, tier: str, data: st.DataObject) -> None:
    told = enough(machine, "balanced", budget(machine))
    found = alternatives(machine, KNOWN, told, tier)
    if not found:
        return
    offer = data.draw(st.sampled_from(found))

    along = dict.fromkeys((tier, *followers(told, tier)), (offer.model.id, offer.quant))

    made = compose(machine, KNOWN, models(told) | along, budget_bytes=told.budget)

    assert made.total <= made.budget
    assert [one.worth for one in found] == sorted((one.worth for one in found), reverse=True)
    assert offer.model.id not in {pick.model for pick in told.picks}


def test_what_cannot_be_composed_says_what_it_needs() -> None:
    big = {STANDARD: ("qwen3.5-27b", "int8"), FAST: ("qwen3.5-9b", "int8"), LONGCTX: ("qwen3.5-4b", "int8")}

    with pytest.raises(TooSmall) as told:
        compose(named("M4", 16), KNOWN, big)
    assert told.value.needs_bytes > 27 * 10**9


def test_tiers_that_name_the_same_model_share_its_engine() -> None:
    same = ("qwen3.5-9b", "int4")

    made = compose(named("M4 Pro", 24), KNOWN, {STANDARD: same, FAST: ("qwen3.5-2b", "int4"), LONGCTX: same})

    assert [pick.tier for pick in made.engines] == [STANDARD, FAST]
    assert made.tier(LONGCTX).shares == STANDARD
    assert made.tier(LONGCTX).context == made.tier(STANDARD).context
    assert made.total <= made.budget


def test_a_chosen_model_that_was_made_for_less_context_serves_with_what_it_has() -> None:
    made = compose(named("M4 Max", 64), KNOWN, {LONGCTX: ("smollm2-135m", next(iter(KNOWN["smollm2-135m"].quants)))})

    assert made.picks[0].context <= KNOWN["smollm2-135m"].context


def test_nine_tenths_of_what_metal_allows_are_planned_for_and_never_what_makes_macos_panic() -> None:
    machine = named("M4", 16)

    assert budget(machine) == int(0.9 * machine.usable_bytes)
    assert budget(dataclasses.replace(machine, usable_bytes=16 * GIB)) == int(0.9 * 0.85 * 16 * GIB)


def test_for_long_prompts_only_what_suits_them_is_offered_instead() -> None:
    machine = named("M4 Max", 128)

    offers = alternatives(machine, KNOWN, chosen(machine), LONGCTX)

    assert offers
    assert all(lasts(offer.model) for offer in offers)


def test_the_other_tiers_give_way_to_an_alternative_as_far_as_they_can_still_serve() -> None:
    told = chosen(named("M4 Max", 64))
    others = sum(pick.bytes for pick in told.engines if pick.tier != STANDARD)

    offers = alternatives(named("M4 Max", 64), KNOWN, told, STANDARD)

    assert max(offer.bytes for offer in offers) > told.budget - others - 2 * GIB


def test_an_alternative_comes_in_its_worthiest_form() -> None:
    machine = named("M4 Max", 128)
    told = chosen(machine)
    best = {offer.model.id: offer.worth for offer in alternatives(machine, KNOWN, told, FAST)}

    for quant in ("int4", "int8"):
        for offer in alternatives(machine, KNOWN, told, FAST, quant=quant):
            assert offer.worth <= best[offer.model.id]


def test_a_machine_with_little_memory_reads_in_small_steps_whatever_is_chosen() -> None:
    machine = named("M4", 16)
    told = chosen(machine)

    steps = {offer.prefill_step for offer in alternatives(machine, KNOWN, told, FAST)}

    assert {512} == steps | {pick.prefill_step for pick in told.picks}


def test_the_smallest_stack_does_with_little_context_and_one_request_at_a_time() -> None:
    made = enough(named("M4 Max", 128), AGENTS, GIB)

    assert len(made.engines) == 1
    for pick in made.picks:
        assert pick.concurrency == 1
        assert pick.context <= max(INTENTS[AGENTS][pick.tier].cramped)


def test_sizes_that_would_read_alike_are_told_in_megabytes() -> None:
    with pytest.raises(TooSmall, match=r"needs \d+ MB; the budget is \d+ MB: \d+ KB too little") as told:
        raise TooSmall(5 * GIB + 2**20 - 1, 5 * GIB + 2**19)
    assert told.value.short_bytes < 2**20


def test_a_prompt_that_can_be_reused_counts_for_agents_and_gets_memory() -> None:
    """Where every model's prompts are reused, caches are planned; where none is, no byte of them."""
    machine = named("M4 Max", 64)
    without = recommend(machine, KNOWN, AGENTS, reuses=lambda _: False)
    with_reuse = recommend(machine, KNOWN, AGENTS, reuses=lambda _: True)

    assert not any(pick.cache_bytes for pick in without.picks)
    for pick in with_reuse.engines:
        assert pick.cache_bytes >= cache_bytes(KNOWN[pick.model], pick.context)


def test_a_model_that_alone_reuses_prompts_wins_agents_on_a_slow_chip() -> None:
    """An M2 Pro takes minutes for 20K tokens, at every turn: a lesser model is worth more if it reads them once."""
    machine = named("M2 Pro", 32)

    anew = recommend(machine, KNOWN, AGENTS, reuses=lambda _: False).tier(STANDARD)
    once = recommend(machine, KNOWN, AGENTS, reuses=lambda model: model.id != anew.model).tier(STANDARD)

    assert once.model != anew.model


def test_it_says_why_the_better_model_is_not_there() -> None:
    small = chosen(named("M4 Pro", 24))
    slow = chosen(named("M4", 32))
    large = chosen(named("M4 Max", 128))

    assert "qwen3.8-27b (quality 52 by Artificial Analysis index) is not here: with a window of 32K" in small.explain
    assert "it would answer at" in slow.explain
    assert "No model of the catalog, however large, is rated above qwen3.8-27b." in large.explain


def test_a_stack_names_windows_waits_and_the_engine_that_tiers_share() -> None:
    made = chosen(named("M4 Pro", 24))

    assert "a window of 64K" in made.explain
    assert "a full window is read in 4 min" in made.explain
    assert "longctx" in made.explain
    assert "it uses the engine of standard" in made.explain
    assert "published by" in made.explain
    assert "reads every prompt from its first token" in made.explain
    assert "thinks before it answers" in made.tier(STANDARD).reasons[4]
    assert "thinks only when a request asks for it" in made.tier(FAST).reasons
    assert "All engines serve Qwen3.5" in made.explain


PRACTICE = {
    (8, "balanced"): {"qwen3.5-2b", "lfm2.5-2.6b", "gemma-4-e2b", "gemma-4-e4b"},
    (16, "balanced"): {"qwen3.5-4b", "qwen3.5-9b", "ornith-9b", "gemma-4-12b"},
    (24, "balanced"): {"qwen3.5-9b", "gemma-4-12b", "gpt-oss-20b"},
    (36, "balanced"): {"qwen3.8-27b", "qwen3.6-35b-a3b", "gemma-4-26b-a4b"},
    (48, "balanced"): {"qwen3.8-27b", "qwen3.6-35b-a3b"},
    (64, "balanced"): {"qwen3.8-27b", "qwen3.6-35b-a3b"},
    (96, "balanced"): {"qwen3.8-27b", "qwen3.6-35b-a3b", "qwen3-coder-next"},
    (128, "balanced"): {"qwen3.8-27b", "qwen3.6-35b-a3b", "qwen3-coder-next", "gpt-oss-120b"},
}
"""Standard models that practitioners run on so much memory (Rapid-MLX, Osaurus, blogs; autumn 2026)."""


@pytest.mark.parametrize("machine", MACS, ids=lambda one: f"{one.chip}-{one.gpu_cores}-{one.memory_bytes >> 30}")
def test_standard_is_one_of_what_practitioners_run(machine: Machine) -> None:
    """docs/catalog.md says why where it departs: on 32 GB a 27B with a window of 32K does not fit into two thirds."""
    wanted = PRACTICE.get((machine.memory_bytes >> 30, "balanced"))
    if wanted is None:
        pytest.skip("no practice was collected for this size")
    if machine.chip == "M1" or machine.gpu_cores <= 8:
        pytest.skip("the slowest chips of a size get a smaller model, as they would take minutes for a prompt")

    assert chosen(machine).tier(STANDARD).model in wanted


@pytest.mark.parametrize("machine", [mac for mac in MACS if mac.memory_bytes == 48 * GIB])
def test_no_toy_serves_beside_a_large_model(machine: Machine) -> None:
    """A 2B as fast beside a 27B is pointless where a 4B or 9B fits."""
    made = chosen(machine)

    assert KNOWN[made.tier(FAST).model].total_params_b >= 4


def test_it_says_in_plain_words_what_more_memory_would_buy_and_what_it_would_cost() -> None:
    made = chosen(named("M4 Pro", 24))

    (more,) = [line for line in made.explain.splitlines() if line.startswith("With 21.6 GB: ")]
    assert "standard and longctx would be qwen3.8-27b int4 (quality 52 instead of 24)" in more
    assert "with a window of 32K instead of 64K" in more
    assert "fast would be qwen3.5-2b int4 (quality 12 instead of 21)" in more


def test_the_explanation_says_where_scores_were_published():
    made = chosen(named("M4 Max", 64))

    for pick in made.engines:
        model = KNOWN[pick.model]
        assert not model.scores_from or f"Scores of {model.id}: {model.scores_from}." in made.explain
