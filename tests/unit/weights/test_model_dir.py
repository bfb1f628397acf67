"""The folder for weights is told from another of the same name, and from one that is not there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support import mounts

from state import facts, stack
from state.db import Database
from state.errors import DiskUnavailable, NotSetUp
from state.stack import Engine
from tasks.weights import model_dir

FAST = Engine("fast", "tiny", "int4", "hub:x/tiny", 8000, 4096, 1, 1, 1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "disk" / "models"


def serve(db: Database, weights: Path) -> Engine:
    """Serve weights from a folder, which is made."""
    weights.mkdir(parents=True)
    engine = dataclasses.replace(FAST, weights=str(weights))
    stack.replace(db, [engine])
    return engine


def test_a_folder_is_made_and_marked_when_it_is_first_written_to(db: Database, models: Path) -> None:
    model_dir.claim(db, models)

    identity = json.loads((models / model_dir.MARKER).read_text())["identity"]
    assert facts.get(db, model_dir.FACT) == {str(models): identity}
    assert model_dir.problem_of(model_dir.recorded(db, models)) is None
    model_dir.claim(db, models)
    assert facts.get(db, model_dir.FACT) == {str(models): identity}


def test_two_homes_may_share_a_folder(db: Database, models: Path) -> None:
    """The second one learns the identity that the first one gave."""
    model_dir.claim(db, models)
    told = facts.get(db, model_dir.FACT)
    facts.put(db, model_dir.FACT, {})

    model_dir.claim(db, models)

    assert facts.get(db, model_dir.FACT) == told


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("empty", "is not the folder that the models were downloaded to"),
        ("gone", "is not there: its disk is not connected"),
        ("file", "is not there: its disk is not connected"),
        ("other", "is not the folder that the models were downloaded to"),
    ],
)
def test_another_folder_of_the_same_name_is_refused_and_stays_as_it_is(
    harm: str, words: str, db: Database, models: Path
) -> None:
    model_dir.claim(db, models)
    serve(db, models / "tiny")
    shutil.rmtree(models)
    if harm == "file":
        models.write_text("")
    elif harm != "gone":
        models.mkdir()
        marker = {"other": '{"identity": "another"}', "empty": None}[harm]
        if marker:
            (models / model_dir.MARKER).write_text(marker)
    before = sorted(models.parent.rglob("*"))

    for ensure in (model_dir.require, model_dir.claim):
        with pytest.raises(DiskUnavailable, match=words) as caught:
            ensure(db, models)
        assert caught.value.done == model_dir.REFUSED
        assert caught.value.hint
    with pytest.raises(DiskUnavailable, match=words) as caught:
        model_dir.require_weights(db, stack.engine(db, "fast"))
    assert caught.value.done == model_dir.LOOKS
    assert sorted(models.parent.rglob("*")) == before


@pytest.mark.parametrize("marker", [None, "", "[]", '{"identity": 3}', "null"])
def test_a_marker_that_was_lost_is_written_again_where_the_weights_are(
    marker: str | None, db: Database, models: Path
) -> None:
    """After a restore without hidden files."""
    model_dir.claim(db, models)
    told = facts.get(db, model_dir.FACT)
    serve(db, models / "tiny")
    (models / model_dir.MARKER).unlink()
    if marker is not None:
        (models / model_dir.MARKER).write_text(marker)

    model_dir.claim(db, models)

    assert json.loads((models / model_dir.MARKER).read_text()) == {"identity": told[str(models)]}


def test_weights_that_were_deleted_are_not_awaited(db: Database, models: Path) -> None:
    """Their folder is there, with its marker: what is missing has to be downloaded again."""
    model_dir.claim(db, models)
    engine = serve(db, models / "tiny")
    (models / "tiny").rmdir()

    with pytest.raises(NotSetUp, match="The weights of fast"):
        model_dir.require_weights(db, engine)


def test_a_folder_that_was_never_marked_must_only_be_there(db: Database, models: Path) -> None:
    """As an older mlxq left it, or a path in a hand-written stack."""
    engine = serve(db, models / "tiny")
    assert model_dir.require_weights(db, engine) == models / "tiny"
    (models / "tiny").rmdir()
    with pytest.raises(NotSetUp):
        model_dir.require_weights(db, engine)
    models.rmdir()
    with pytest.raises(DiskUnavailable, match="is not there"):
        model_dir.require_weights(db, engine)


def test_a_folder_that_hangs_is_told_in_the_time_that_is_given(db: Database, models: Path) -> None:
    model_dir.claim(db, models)
    with mounts.hanging(models) as close:
        for ensure in (model_dir.require, model_dir.require):
            with pytest.raises(DiskUnavailable, match="does not answer: its disk or server hangs"):
                ensure(db, models, 0.2)
        close()
        with pytest.raises(DiskUnavailable, match="cannot be read: Transport endpoint is not connected"):
            model_dir.require(db, models)
    model_dir.require(db, models)


def test_a_read_only_folder_is_read_and_not_written(db: Database, models: Path) -> None:
    model_dir.claim(db, models)
    engine = serve(db, models / "tiny")
    with mounts.read_only(models):
        assert model_dir.require_weights(db, engine)
        with pytest.raises(DiskUnavailable, match="is read-only"):
            model_dir.claim(db, models)
