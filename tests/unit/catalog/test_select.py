"""A list of models holds what was asked for and nothing else."""

from __future__ import annotations

from catalog.fit import memory
from catalog.load import entries
from catalog.select import families, select, tags

KNOWN = entries()


def test_nothing_asked_gives_everything():
    assert len(select(KNOWN)) == len(KNOWN)


def test_a_family_is_found_however_it_is_spelled():
    assert [one.id for one in select(KNOWN, family="gemma3")] == ["gemma-3-4b", "gemma-3-12b", "gemma-3-27b"]
    assert select(KNOWN, family="GEMMA 3") == select(KNOWN, family="gemma-3")


def test_every_family_and_tag_finds_its_own():
    for family in families(KNOWN):
        assert {one.family for one in select(KNOWN, family=family)} == {family}
    for tag in tags(KNOWN):
        assert all(tag in one.tags for one in select(KNOWN, tag=tag))


def test_conditions_add_up():
    found = select(KNOWN, tag="agent", tool_calling=True, budget_bytes=10_000_000_000)

    assert found
    for model in found:
        assert "agent" in model.tags
        assert model.tool_calling
        assert min(memory(model, quant, 8192).total for quant in model.quants) <= 10e9
