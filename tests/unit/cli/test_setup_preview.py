"""What `mlxq setup --dry-run` tells over a stack that is here, and what is still to be fetched."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.here import Run, runner

from catalog.load import entries
from catalog.machine import Machine
from mlxq.setup import inspection, preview
from mlxq.setup.inspection import Inspection
from state import facts, settings, stack
from state.db import Database
from state.errors import DoesNotFit
from state.paths import Home
from state.stack import Engine, as_tiers
from tasks import score
from tasks.engines import installed, serving
from tasks.system import hardware
from tasks.weights import source, staging

GIB = 2**30
MACHINE = Machine("M4 Pro", "metal", "macOS 26.2", 48 * GIB, 36 * GIB, 273, "table", 17, gpu_cores=20)
STANDARD = Engine("standard", "qwen3.5-9b", "int4", "hub:mlx-community/Qwen3.5-9B-4bit", 8000, 32768, 8 * GIB, 1, 1)
FAST = replace(STANDARD, name="fast", model="qwen3.5-2b", port=8001, memory_bytes=GIB)
ASKED = {"intent": "balanced", "budget_pct": "auto", "quant": None}
ALL = {"pull": True, "start": True}


@pytest.fixture
def run(db: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(db, home, {"score": score.score}, monkeypatch)


def a_look(home: Home, told: dict[str, Any], *, hub: bool = True) -> Inspection:
    """Give what set-up would find in a home with two tiers."""
    return Inspection(
        retrieval=(),
        home=home, machine=MACHINE, models=entries(), measured=(), hub=hub, installed=frozenset(), partial={},
        free_bytes=10**12, tiers=as_tiers([STANDARD, FAST]), stack_facts=told, settings=settings.load(home),
    )  # fmt: skip


@pytest.mark.parametrize("hub", [True, False], ids=["hub", "no hub"])
@pytest.mark.parametrize("args", [{}, {"intent": "balanced"}, {"intent": "agent-fleet"}, {"budget_pct": 60}], ids=str)
@pytest.mark.parametrize(
    "told",
    [{}, {"asked": ASKED}, {"asked": ASKED, "builtin": True}, {"asked": ASKED | {"budget_pct": 50}}],
    ids=["by hand", "asked", "built-in", "otherwise"],
)
def test_what_a_dry_run_tells_is_what_set_up_then_does(
    home: Home, db: Database, run: Run, *, told: dict[str, Any], args: dict[str, Any], hub: bool
) -> None:
    stack.replace(db, [STANDARD, FAST])
    for name, fact in {"machine": MACHINE.as_row(), "hub": {"reachable": hub}, "stack": told}.items():
        facts.put(db, name, fact)

    foretold = preview.document(a_look(home, told, hub=hub), ALL | args)
    done = run("score", **ALL, **args).result

    assert foretold["kept"] == done["kept"]
    assert {each["tier"]: f"{each['model']} {each['quant']}" for each in foretold["tiers"]} == done["tiers"]


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize("wanted", [True, False], ids=["engine", "no engine"])
def test_the_engine_that_a_model_needs_is_installed_where_an_index_has_it(
    home: Home, db: Database, run: Run, capsys: pytest.CaptureFixture[str], *, index: bool, wanted: bool
) -> None:
    """The dry run says its size and what it buys, or what is lost without it; setup does what was said."""
    stack.replace(db, [STANDARD, FAST])
    for name, fact in {"machine": MACHINE.as_row(), "hub": {"reachable": True}, "index": {"reachable": index}}.items():
        facts.put(db, name, fact)
    lacks = serving.by_catalog(db, home).lacks if wanted else lambda _: None
    found = replace(a_look(home, {}), lacks=lacks, index=index)
    arguments = ALL if wanted else ALL | {"engine": False}
    preview.show(found, arguments)
    said = capsys.readouterr().out
    done = run("score", **arguments).result
    kinds = db.rows("SELECT kind FROM jobs WHERE kind = 'add_engine'")

    assert ("With the engine rapid-mlx 0.16.10 (150 MB to download, 312 MB on disk)" in said) is (index and wanted)
    assert ("rapid-mlx is not installed: the package index is out of reach" in said) is (wanted and not index)
    assert preview.document(found, arguments)["engine"] == done["engine"] == ("rapid-mlx" if index and wanted else None)
    assert len(kinds) == (index and wanted)


def test_a_model_whose_prompts_are_read_once_needs_no_other_engine(home: Home, db: Database) -> None:
    by_name = {name: model for name, model in entries().items() if name in {"smollm2-135m", "qwen3.5-9b"}}
    programs = serving.by_catalog(db, home)
    assert programs.lacks([by_name["smollm2-135m"]]) is None
    assert programs.lacks(by_name.values()) == "rapid-mlx"
    installed.take_back(db, "rapid-mlx", "0.16.10", "it hung")
    assert serving.by_catalog(db, home).lacks(by_name.values()) is None, "one that failed is not installed again"
    settings.write(home, "engine", "vllm-mlx")
    assert serving.by_catalog(db, home).lacks(by_name.values()) is None


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_documents_show_what_setup_recommends(page: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """On an M4 Max with 128 GB, where Hub and package index are reachable and nothing is installed."""
    root = Path(__file__).parents[3]
    machine = hardware.parse_fixture((root / "tests/fixtures/machines/m4-max-128.txt").read_text())
    programs = replace(serving.by_catalog(None, home), adds=True)
    fresh = replace(a_look(home, {}), machine=machine, tiers=(), lacks=programs.lacks, reuses=programs.reuses)
    preview.show(replace(fresh, free_bytes=898 * 10**9, index=True), ALL)

    table_and_footer = capsys.readouterr().out.partition("\n\nIntent ")[0]
    shown = " ".join((root / page).read_text().split())
    for line in table_and_footer.splitlines():
        assert " ".join(line.split()) in shown


def test_a_stack_that_stays_is_told_with_what_it_lacks(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    preview.show(a_look(home, {}), ALL)

    said = capsys.readouterr().out
    assert said.startswith("The current stack is kept:\n")
    assert "standard  qwen3.5-9b  int4   32K  8 GB" in said
    assert "To download: 6 GB; the disk has 1000 GB free." in said


def test_weights_that_the_catalog_does_not_know_are_not_told_to_be_here(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = replace(STANDARD, source="hub:somebody/else")
    preview.show(replace(a_look(home, {}), tiers=as_tiers([strange])), ALL)

    said = capsys.readouterr().out
    assert "To download: hub:somebody/else, of unknown size." in said
    assert "All models are downloaded" not in said


def test_another_stack_is_told_with_what_becomes_of_each_tier(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    preview.show(a_look(home, {"asked": ASKED}), ALL | {"intent": "agent-fleet"})

    lines = capsys.readouterr().out.partition("Changes to the current stack:\n")[2].splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["standard", "qwen3.5-9b"], ["fast", "qwen3.5-2b"]]
    assert lines[2].split()[0] == "longctx"
    assert lines[2].endswith("is new; it shares the engine of standard")


def test_a_tier_whose_model_stays_may_get_another_context(home: Home) -> None:
    chosen = a_look(home, {}).recommend({"intent": "balanced"})
    first = chosen.picks[0]
    same = replace(STANDARD, name=first.tier, model=first.model, quant=first.quant, context=first.context)

    assert preview.differences(as_tiers([same]), chosen)[1].endswith(" is kept")
    less = replace(same, context=first.context // 2)
    assert " is kept, with a context of " in preview.differences(as_tiers([less]), chosen)[1]


def test_what_the_options_leave_out_is_told(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    preview.show(a_look(home, {}), {"pull": False, "start": False})
    assert "Nothing would be downloaded or started." in capsys.readouterr().out
    assert preview.document(a_look(home, {}), {"pull": False, "start": False})["download_bytes"] == 0

    preview.show(a_look(home, {}), {"pull": True, "start": False})
    assert "Nothing would be started." in capsys.readouterr().out


def test_what_the_disk_cannot_hold_is_refused_as_the_fetch_would(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    full = replace(a_look(home, {}), free_bytes=0)

    with pytest.raises(DoesNotFit, match=r"The download needs 6 GB and 2 GB kept free; .* has 1 GB: 7 GB too little\."):
        preview.require_room(full, ALL)
    preview.require_room(full, ALL | {"pull": False})
    preview.require_room(replace(full, installed=frozenset({STANDARD.source})), ALL)


def test_of_a_fetch_that_was_broken_off_only_the_rest_is_to_come(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = entries()["qwen3.5-9b"].quants["int4"]
    folder = home.models / (source.folder_name(source.parse(wanted.source), "0123456789abcdef") + staging.SUFFIX)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2**20)

    found = inspection.inspect(home, ALL)

    assert found.fetch_of("qwen3.5-9b", "int4") == wanted.bytes - staging.used(folder) < wanted.bytes
    assert found.fetch_of("qwen3.5-9b", "int8") == entries()["qwen3.5-9b"].quants["int8"].bytes


@pytest.mark.parametrize(
    ("name", "text", "same"),
    [
        ("org--name@0123456789ab", "hub:org/name", True),
        ("org--name@0123456789ab", "hub:org/name@main", True),
        ("org--name@0123456789ab-int4", "hub:org/name#int4", True),
        ("org--name@0123456789ab-int4", "hub:org/name", False),
        ("org--name@0123456789ab", "hub:org/name#int4", False),
        ("org--name-two@0123456789ab", "hub:org/name", False),
        ("by-hand", "hub:org/name", False),
    ],
)
def test_a_folder_is_known_by_its_name_whatever_the_revision(name: str, text: str, same: bool) -> None:
    assert source.is_of(name, source.parse(text)) == same
