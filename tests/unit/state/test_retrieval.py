"""Engines that no tier has: they stay while tiers come and go, and leave when they are taken away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from catalog import retrieval as catalog
from catalog.machine import Machine
from state import facts, stack
from state.db import Database
from state.errors import DoesNotFit, NotFound
from state.paths import Home
from state.settings import TIER_PORTS
from state.stack import Engine
from tasks import stack_jobs
from tasks.plan import gateway, retrieval

CHAT = Engine("fast", "m", "int4", "hub:o/m", 8001, 4096, 2**30, 0, 1)
ROOM = 8 * 2**30


def placed(purpose: stack.Purpose = "embedding", name: str = "all-minilm-l6-v2", room: int = ROOM) -> Engine:
    model, quant = retrieval.find(name, purpose)
    return retrieval.place(purpose, model, quant, [CHAT], base_port=8000, budget_bytes=room)


def test_it_stays_while_the_tiers_are_replaced(db: Database):
    engine = placed()
    stack.replace(db, [CHAT])
    stack.put_retrieval(db, engine)
    stack.replace(db, [replace(CHAT, name="standard")])
    assert stack.retrieval(db) == [engine]
    assert [served.name for served in stack.engines(db)] == ["standard", "embedding"]
    assert [tier.name for tier in stack.tiers(db)] == ["standard"]


def test_another_one_takes_its_place_and_it_can_be_taken_away(db: Database):
    stack.put_retrieval(db, placed())
    stack.put_retrieval(db, placed(name="bge-m3:int8"))
    assert [(engine.model, engine.quant) for engine in stack.retrieval(db)] == [("bge-m3", "int8")]
    assert stack.remove_retrieval(db, "embedding")
    assert not stack.remove_retrieval(db, "embedding")
    assert stack.engines(db) == []


def test_a_tier_that_takes_its_port_moves_it(db: Database):
    engine = placed()
    stack.put_retrieval(db, engine)
    stack.replace(db, [replace(CHAT, port=engine.port)])
    assert len({served.port for served in stack.engines(db)}) == 2


def test_a_tier_is_never_taken_away_as_one(db: Database):
    stack.replace(db, [CHAT])
    assert not stack.remove_retrieval(db, "fast")


def test_its_memory_is_taken_from_the_budget_of_the_tiers(db: Database, home: Home):
    machine = Machine("test", "cpu", "Linux", 16 * 10**9, 12 * 10**9, 20.0, "measured", 0.1)
    facts.put(db, "machine", machine.as_row())
    whole = stack_jobs.tier_budget(db, home)
    engine = placed()
    stack.put_retrieval(db, engine)
    assert stack_jobs.tier_budget(db, home) == whole - engine.memory_bytes


def test_an_alias_of_the_user_leads_to_it():
    engine = placed()
    own = {"my-embeddings": "embedding", "o3": "fast"}
    tiers = [stack.alone(CHAT)]
    assert "my-embeddings" not in gateway.aliases(own, tiers, [engine])
    names = str(retrieval.configuration([CHAT, engine], own)["embedding"]["names"])
    assert "my-embeddings" in names
    assert "text-embedding-3-small" in names
    assert "o3" not in names


@pytest.mark.parametrize(("free", "budget", "offered"), [(0, 64, True), (0, 6, False), (1, 6, True)])
def test_one_is_offered_where_it_costs_the_tiers_little(free: int, budget: int, offered: bool):
    assert (retrieval.offered(free * 2**30, budget * 2**30, hub=True) is not None) == offered


def test_its_port_is_behind_those_of_the_tiers():
    assert placed().port == 8000 + TIER_PORTS


def test_what_does_not_fit_is_refused_with_the_sum():
    with pytest.raises(DoesNotFit, match="bge-reranker-v2-m3 fp32 needs"):
        placed("rerank", "bge-reranker-v2-m3", room=2 * 2**30)


@pytest.mark.parametrize("name", ["qwen3-8b", "bge-m3:int3", "bge-reranker-v2-m3"])
def test_an_unknown_model_is_refused_with_those_there_are(name: str):
    with pytest.raises(NotFound, match="all-minilm-l6-v2"):
        retrieval.find(name, "embedding")


@pytest.mark.parametrize("model", catalog.entries().values(), ids=lambda model: model.id)
def test_every_model_of_the_catalog_is_whole(model: catalog.RetrievalModel):
    assert model.purpose in retrieval.PURPOSES
    assert (model.dimensions > 0) == (model.purpose == "embedding")
    assert model.longest_input > 0
    assert model.license
    for quant in model.quants.values():
        assert quant.source.startswith(("hub:", "pypi:"))
        assert retrieval.find(quant.repo or model.id, model.purpose) == (model, quant.name)
        assert model.memory_bytes(quant.name) > quant.bytes
