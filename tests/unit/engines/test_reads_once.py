"""The choice of models knows the engine that will serve: what it reads again, and what it keeps of prompts."""

from __future__ import annotations

import sys

import pytest

from catalog.fit import cache_bytes
from catalog.load import entries
from catalog.machine import Machine
from state.db import Database
from state.paths import Home
from tasks import recommend
from tasks.engines import installed, serving
from tasks.plan.placement import place

GIB = 2**30
MAC = Machine("M4 Max", "metal", "macOS 26.2", 64 * GIB, 48 * GIB, 546, "table", 34, gpu_cores=40)
HYBRID, PLAIN, CONVOLUTION = (entries()[name] for name in ("qwen3.5-9b", "qwen3-4b-2507", "lfm2.5-1.2b"))
ASKED = {"intent": "agent-fleet", "budget_pct": "auto", "quant": None}


@pytest.fixture
def rapid(home: Home) -> None:
    """Leave what an installation of the second engine leaves."""
    folder = installed.folder(home, "rapid-mlx", "0.16.10")
    (folder / "venv" / "bin").mkdir(parents=True)
    installed.python(folder).symlink_to(sys.executable)
    installed.write_proof(folder, {"engine": "rapid-mlx", "version": "0.16.10", **installed.interpreter(folder)})


def test_the_engine_that_is_always_there_reads_hybrids_again(db: Database, home: Home) -> None:
    for reuses in (serving.reads_once(db, home), serving.reads_once(None, home)):
        assert reuses(PLAIN)
        assert not reuses(HYBRID)
        assert not reuses(CONVOLUTION)


@pytest.mark.usefixtures("rapid")
def test_with_the_second_engine_hybrids_are_read_once(db: Database, home: Home) -> None:
    reuses = serving.reads_once(db, home)

    assert reuses(HYBRID)
    assert reuses(CONVOLUTION)


def test_no_memory_is_planned_for_prompts_that_are_read_again(db: Database, home: Home) -> None:
    """Of a stack that setup chooses, and of a tier that is added by hand."""
    reuses = serving.reads_once(db, home)
    stack = recommend.choose(MAC, entries(), ASKED, hub=True, reuses=reuses)

    assert all(bool(pick.cache_bytes) == reuses(entries()[pick.model]) for pick in stack.engines)
    tier = place("mine", HYBRID, "int4", [], base_port=8000, budget_bytes=40 * GIB, reuses=reuses)
    assert tier.engine.cache_bytes == 0


@pytest.mark.usefixtures("rapid")
def test_where_prompts_are_read_once_a_full_window_of_them_is_kept(db: Database, home: Home) -> None:
    reuses = serving.reads_once(db, home)
    stack = recommend.choose(MAC, entries(), ASKED, hub=True, reuses=reuses)

    for pick in stack.engines:
        assert pick.cache_bytes >= cache_bytes(entries()[pick.model], pick.context)
    assert "reads every prompt from its first token" not in stack.explain
    tier = place("mine", HYBRID, "int4", [], base_port=8000, budget_bytes=40 * GIB, reuses=reuses)
    assert tier.engine.cache_bytes == cache_bytes(HYBRID, tier.context)


def test_the_explanation_names_the_engine_that_would_read_a_prompt_once(db: Database, home: Home) -> None:
    stack = recommend.choose(MAC, entries(), ASKED, hub=True, reuses=serving.reads_once(db, home))
    rereading = [pick for pick in stack.engines if not pick.cache_bytes]

    assert rereading
    assert "which rapid-mlx would not (mlxq engine install rapid-mlx)" in stack.explain
