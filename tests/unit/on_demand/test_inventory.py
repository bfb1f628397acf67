"""The models on this disk go by names that a person would type, and no two share one."""

from __future__ import annotations

import functools
import os
import shutil
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hub.model import make
from support.interleaved import before_next_transaction

from mlxq import cli
from state import facts, on_demand, service, settings, stack
from state.db import Database, read_database
from state.paths import Home
from state.stack import Engine, Tier
from tasks.on_demand import inventory, loading, requests
from tasks.system import hardware
from tasks.weights import manifest
from tasks.weights.manifest import Manifest


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make(tmp_path / "weights", shard_bytes=3_000)


machine = functools.cache(hardware.detect)


@pytest.fixture
def known(db: Database, home: Home) -> Database:
    """Give a home with a stack, which there must be before models are looked for."""
    facts.put(db, "machine", machine().as_row())
    stack.replace(db, [Tier("standard", Engine("standard", "x/y", "bf16", "hub:x/y", 9131, 512, 1, 1, 1))])
    return db


def put(home: Home, weights: Path, *folders: str) -> None:
    for folder in folders:
        shutil.copytree(weights, home.models / folder)


def names(db: Database, home: Home) -> dict[str, tuple[str, ...]]:
    """Return folder -> the names of its model, that of its engine last."""
    inventory.refresh(db, home)
    return {Path(entry.engine.weights).name: on_demand.names(entry) for entry in on_demand.models(db)}


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("Plain Modél", ("plain-model", "Plain Modél", "plain-model.int4")),
        ("LLAMA", ("llama", "llama.int4")),
        ("mine:7b", ("mine-7b", "mine:7b", "mine-7b.int4")),
        ("模型", ("model", "模型", "model.int4")),
        ("org--name@0a1b", ("org-name-0a1b", "org--name", "org-name-0a1b.int4")),
    ],
)
def test_a_folder_is_asked_for_by_its_own_name_and_by_a_plain_one(
    folder: str, named: tuple[str, ...], known: Database, home: Home, weights: Path
) -> None:
    put(home, weights, folder)

    assert names(known, home) == {folder: named}
    for name in (*named, folder.partition("@")[0].upper(), unicodedata.normalize("NFD", folder.partition("@")[0])):
        assert requests.find(known, name) == named[-1], name


def test_of_names_that_fold_to_one_the_folder_called_so_has_it_and_none_is_lost(
    known: Database, home: Home, weights: Path
) -> None:
    put(home, weights, "My Model", "my-model", "MY_MODEL", "模型", "модель")

    named = names(known, home)
    assert named["my-model"][0] == "my-model"
    assert len(named) == 5
    everything = [on_demand.folded(name) for own in named.values() for name in own]
    assert len(everything) == len(set(everything))
    for folder in named:
        assert requests.find(known, folder) == named[folder][-1]
    assert names(known, home) == named, "they stay"


def test_folders_that_differ_in_case_alone_are_two_models(known: Database, home: Home, weights: Path) -> None:
    put(home, weights, "Alpha", "alpha")

    assert names(known, home) == {"alpha": ("alpha", "alpha.int4"), "Alpha": ("alpha-2", "alpha-2.int4")}


def test_of_two_revisions_the_newer_one_has_the_name(known: Database, home: Home, weights: Path) -> None:
    for revision, at in (("aaaa", 2_000_000_000), ("bbbb", 1_000_000_000)):
        folder = home.models / f"me--mine@{revision}"
        put(home, weights, folder.name)
        manifest.write(folder, Manifest("hub:me/mine", revision, ()))
        os.utime(folder, (at, at))

    assert names(known, home)["me--mine@aaaa"] == ("me-mine", "me--mine", "me/mine", "me-mine.int4")
    assert names(known, home)["me--mine@bbbb"] == ("me-mine-2", "me-mine-2.int4")


def test_commands_take_every_name_of_a_model(
    known: Database, home: Home, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, weights, "Plain Modél", "other")
    inventory.refresh(known, home)
    for name in ("Plain Modél", "plain modél", "plain-model", "PLAIN-MODEL"):
        assert cli.run(["rm", name, "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "Plain Modél" in out, name
        assert "other" not in out, name
        assert cli.run(["pin", name]) == 0
        assert settings.load(home)["pinned"] == ["plain-model"]
        assert cli.run(["unpin", name]) == 0
        assert settings.load(home)["pinned"] == []


def test_a_name_typed_just_so_means_no_other_folder(
    known: Database, home: Home, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, weights, "My Model", "my-model")
    inventory.refresh(known, home)

    for typed, others in (("my-model", "My Model"), ("My Model", "my-model"), ("my-model-2", "my-model\n")):
        assert cli.run(["rm", typed, "--dry-run"]) == 0
        assert others not in capsys.readouterr().out, typed


def test_a_name_with_a_space_is_quoted_in_the_command_to_run_next(
    known: Database, home: Home, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, weights, "Plain Modél")
    engine = Engine("fast", "x/y", "bf16", "hub:x/y", 9131, 512, 1, 1, 1, weights=str(home.models / "Plain Modél"))
    stack.replace(known, [Tier(name, engine) for name in ("fast", "standard", "longctx")])

    assert cli.run(["rm", "Plain Modél", "--yes"]) == 1
    refused = capsys.readouterr().err
    assert "is served by fast, standard and longctx." in refused
    assert "Next: mlxq rm 'Plain Modél' --force" in refused


def test_a_model_that_is_loaded_while_the_disk_is_read_stays_as_it_is_loaded(
    known: Database, home: Home, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the gateway would know neither its route nor the port that it may connect to, though it serves."""
    put(home, weights, "mine")
    inventory.refresh(known, home)
    engine = stack.engine(known, "mine.int4")
    before_next_transaction(known, lambda: loading._take(known, home, engine), monkeypatch)
    inventory.refresh(known, home)

    entry = on_demand.model(known, "mine")
    assert entry
    assert entry.route
    assert entry.engine.port == service.get(known, "mine.int4").port > 0


def test_a_model_has_its_route_and_is_to_run_in_one_step(
    known: Database, home: Home, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home, weights, "mine")
    inventory.refresh(known, home)
    seen: list[object] = []
    ensure = service.ensure

    def ensure_seen(db: Database, *arguments: Any) -> None:
        with closing(read_database(home)) as reader:
            seen.append(on_demand.model(reader, "mine"))
        ensure(db, *arguments)

    monkeypatch.setattr(service, "ensure", ensure_seen)
    before = on_demand.model(known, "mine")
    loading._take(known, home, stack.engine(known, "mine.int4"))

    assert seen == [before]
    assert on_demand.model(known, "mine") != before
