"""`mlxq models`, `prune` and `verify` over folders of all kinds: they agree, and what a user put there stays."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hub.model import make
from support import mounts
from support.here import Run, runner

from catalog import units
from mlxq import cli
from state import stack, weights
from state.db import Database
from state.paths import Home
from state.stack import Engine, Tier
from tasks import pull
from tasks.weights import manifest, staging
from tasks.weights.formats import headers
from tasks.weights.manifest import File, Manifest


@pytest.fixture
def run(db: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs one job as the worker does."""
    return runner(db, home, {"remove_weights": pull.remove_weights}, monkeypatch)


def install(db: Database, folder: Path, *, revision: str = "1", recorded: bool = True) -> Path:
    """Lay a whole model there as a pull does, with its manifest and its row."""
    make(folder, shard_bytes=3_000)
    names = headers.plain_files(folder)
    files = [
        File(name, (folder / name).stat().st_size, "sha256", manifest.hash_file(folder / name, "sha256"))
        for name in names
    ]
    manifest.write(folder, Manifest("hub:x/y", revision, tuple(files)))
    if recorded:
        found = headers.inventory(folder)
        told = {field.name: getattr(found, field.name) for field in fields(weights.Facts)}
        weights.record(db, str(folder), "hub:x/y", told | {"revision": revision, "recipe": None})
    return folder


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert cli.run(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    return {Path(row["folder"]).name: row for row in rows}


def would_go(capsys: pytest.CaptureFixture[str], *options: str) -> set[str]:
    """Return the folders that prune would delete."""
    capsys.readouterr()
    assert cli.run(["prune", "--dry-run", "--json", *options]) == 0
    return {Path(row["folder"]).name for row in json.loads(capsys.readouterr().out)["models"]}


def test_prune_takes_what_this_mlxq_left_and_nothing_else(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = install(db, home.models / "whole")
    torn = install(db, home.models / "torn")
    (torn / "tokenizer_config.json").write_text("")
    os.utime(install(db, home.models / "older", revision="0"), (1_000_000_000, 1_000_000_000))
    install(db, home.models / "by-another-mlxq", revision="2", recorded=False)
    make(home.models / "by-hand", shard_bytes=3_000)
    (home.models / "mine.partial").mkdir()
    with staging.hold(home.models / "left"):
        pass
    (home.models / "link").symlink_to(whole)

    states = {name: row["state"] for name, row in listed(capsys).items()}
    assert states == dict.fromkeys(("whole", "older", "by-another-mlxq", "by-hand", "link"), "valid") | {
        "torn": "damaged",
        "mine.partial": "partial",
        "left.partial": "partial",
    }
    assert would_go(capsys) == {"older", "torn", "left.partial"}
    assert would_go(capsys, "--unused") == {"whole", "older", "torn", "left.partial"}


def test_what_verify_finds_right_is_not_pruned_when_no_loader_knows_it_any_more(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a loader was taken back: every byte is as it was fetched."""
    folder = install(db, home.models / "new")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "from_the_future"}
    (folder / "config.json").write_text(json.dumps(config))
    told = File("config.json", (folder / "config.json").stat().st_size, "sha256", "0")
    manifest.write(folder, Manifest("hub:x/y", "1", (told,)))

    row = listed(capsys)["new"]

    assert (row["state"], "from_the_future" in row["problem"]) == ("unsupported", True)
    assert would_go(capsys) == set()


def test_damaged_weights_lead_to_verify(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    folder = install(db, home.models / "torn")
    (folder / "config.json").write_text("{")

    assert cli.run(["models"]) == 0

    said = capsys.readouterr()
    assert f"torn: {folder} has files that are not as they were fetched: config.json." in said.out
    assert "Next: mlxq verify torn" in said.err


def test_a_folder_on_a_disk_that_is_gone_is_one_line(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    install(db, home.models / "whole")
    gone = install(db, home.models / "gone")
    with mounts.dead(gone):
        rows = listed(capsys)
        assert (rows["whole"]["state"], rows["gone"]["state"]) == ("valid", "unreadable")
        assert rows["gone"]["problem"] == f"{gone} cannot be read: Transport endpoint is not connected."
        assert would_go(capsys, "--unused") == {"whole"}


def serve(db: Database, folder: Path, *tiers: str) -> None:
    """Serve a folder of weights with one engine that has these tiers."""
    engine = Engine(tiers[0], "x/y", "bf16", "hub:x/y", 9131, 512, 1, 1, 1, weights=str(folder))
    stack.replace(db, [Tier(name, engine) for name in tiers])


def test_weights_that_tiers_share_stay_until_the_last_of_them_has_left(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = install(db, home.models / "shared")
    for tiers in (("fast", "standard", "longctx"), ("standard", "longctx"), ("longctx",)):
        serve(db, folder, *tiers)
        assert listed(capsys)["shared"]["used_by"] == list(tiers)
        assert would_go(capsys, "--unused") == set()
        assert cli.run(["rm", "x/y", "--yes"]) == 1
        assert f"shared is served by {units.listed(tiers)}." in capsys.readouterr().err
    stack.replace(db, [])

    assert would_go(capsys, "--unused") == {"shared"}
    assert db.value("SELECT count(*) FROM jobs") == 0


def test_an_older_revision_that_tiers_share_is_not_pruned(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    older = install(db, home.models / "older", revision="0")
    os.utime(older, (1_000_000_000, 1_000_000_000))
    install(db, home.models / "newer")
    serve(db, older, "fast", "standard")

    assert would_go(capsys) == set()
    stack.replace(db, [])
    assert would_go(capsys) == {"older"}


def test_weights_of_several_engines_that_are_deleted_by_force_belong_to_none_of_them(
    run: Run, home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = install(db, home.models / "shared")
    other = install(db, home.models / "other", revision="2")
    engine = Engine("fast", "x/y", "bf16", "hub:x/y", 9131, 512, 1, 1, 1, weights=str(folder))
    stack.replace(
        db,
        [
            Tier("fast", engine),
            Tier("standard", engine),
            Tier("longctx", replace(engine, name="longctx", port=9132)),
            Tier("tiny", replace(engine, name="tiny", port=9133, weights=str(other))),
        ],
    )

    refused = run("remove_weights", folder=str(folder))
    assert (refused.error_code, folder.is_dir()) == ("busy", True)
    assert "is served by fast, standard and longctx." in (refused.error or "")

    assert run("remove_weights", folder=str(folder), force=True).state == "succeeded"
    assert not folder.exists()
    assert {tier.name: tier.engine.weights for tier in stack.tiers(db)} == dict.fromkeys(
        ("fast", "standard", "longctx"), ""
    ) | {"tiny": str(other)}
    assert set(listed(capsys)) == {"other"}
