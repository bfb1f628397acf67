"""Folders that are away are looked at in threads, with pauses that grow; and exits that they cause are told apart."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from state import facts, service, stack
from state.db import Database
from state.errors import DiskUnavailable
from state.paths import Home
from state.service import ServiceEvent, State
from state.stack import Engine
from tasks.supervision import exits
from tasks.supervision.disk_watch import FIRST_PAUSE_S, LONGEST_PAUSE_S, DiskWatch
from tasks.system import process
from tasks.weights import manifest, model_dir
from tasks.weights.manifest import Manifest

FAST = Engine("fast", "tiny", "int4", "hub:x/tiny", 9271, 4096, 1, 1, 1)


class Ticks:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def weights(db: Database, tmp_path: Path) -> Path:
    """Serve weights from a marked folder."""
    folder = tmp_path / "disk" / "tiny"
    model_dir.claim(db, folder.parent)
    folder.mkdir()
    stack.replace(db, [replace(FAST, weights=str(folder))])
    service.ensure(db, "fast", "engine", FAST.port)
    service.set_desired(db, "fast", "up")
    return folder


def ended() -> None:
    """Wait until no look is under way."""
    for thread in threading.enumerate():
        if thread.name.startswith("disk-"):
            thread.join(20)


def test_a_folder_that_is_back_is_told_once_to_each_service(db: Database, weights: Path) -> None:
    watch, other = DiskWatch(), replace(FAST, name="standard", port=9272, weights=str(weights))
    stack.replace(db, [stack.engine(db, "fast"), other])
    assert watch.returned(db, ["fast", "standard"]) == []
    ended()
    assert watch.returned(db, ["fast", "standard"]) == ["fast", "standard"]
    assert watch.returned(db, []) == []


def test_looks_become_rarer_and_start_anew_when_something_changes(
    db: Database, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, looks, words = Ticks(), [], ["is not there"]

    def look(_: object) -> None:
        looks.append(clock.now)
        raise DiskUnavailable(words[0])

    monkeypatch.setattr(model_dir, "look", look)
    watch = DiskWatch(clock)
    for second in range(200):
        clock.now = float(second)
        assert watch.returned(db, ["fast"]) == []
        ended()
    pauses = [after - before for before, after in pairwise(looks)]
    assert pauses[:5] == [FIRST_PAUSE_S, 4, 8, 16, LONGEST_PAUSE_S]
    assert set(pauses[5:]) == {LONGEST_PAUSE_S}

    words[0] = "does not answer"
    looks.clear()
    for second in range(200, 260):
        clock.now = float(second)
        watch.returned(db, ["fast"])
        ended()
    assert FIRST_PAUSE_S in [after - before for before, after in pairwise(looks)]


def test_a_look_that_hangs_is_one_thread_and_holds_nothing_up(
    db: Database, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(model_dir, "look", lambda _: release.wait(60))
    clock = Ticks()
    watch = DiskWatch(clock)
    for second in range(100):
        clock.now = float(second)
        assert watch.returned(db, ["fast"]) == []
    assert sum(thread.name.startswith("disk-") for thread in threading.enumerate()) == 1
    release.set()
    ended()
    assert watch.returned(db, ["fast"]) == ["fast"]


def test_a_service_without_weights_waits_for_nothing(db: Database, weights: Path) -> None:
    stack.replace(db, [FAST])
    assert DiskWatch().returned(db, ["fast", "gone"]) == []


LOG = "ValueError: [load_safetensors] Failed to open file: incomplete download or corrupt file\n"


@pytest.mark.parametrize(
    ("harm", "state", "words", "hint"),
    [
        ("", State.FAILED, "The weights are truncated or damaged.", "mlxq verify tiny"),
        ("hand", State.FAILED, "The weights are truncated or damaged.", "mlxq models"),
        ("deleted", State.FAILED, "The weights are truncated or damaged.", "mlxq setup"),
        ("away", State.DISK_UNAVAILABLE, "is not there: its disk is not connected.", "ls -ld"),
    ],
)
def test_what_an_engine_says_of_its_weights_leads_to_what_repairs_them(  # noqa: PLR0917 (a row and three fixtures)
    harm: str, state: State, words: str, hint: str, home: Home, db: Database, weights: Path
) -> None:
    """An engine whose disk goes away while it loads says that its weights are damaged."""
    if harm == "deleted":
        weights.rmdir()
    elif harm == "away":
        weights.parent.rename(weights.parent.with_name("elsewhere"))
    elif harm != "hand":
        manifest.write(weights, Manifest("hub:x/tiny", "1", ()))
    home.log("fast").write_text(LOG)
    me = process.identify(os.getpid())
    assert me
    service.request_start(db, "fast", ["engine"], "f", FAST.port, release="vllm-mlx 0.6.0")
    gone = replace(me, start="1")
    service.apply(db, "fast", ServiceEvent.SPAWNED, identity=process.encode(gone))

    assert exits.record_exit(db, home, "fast", gone)

    row = service.get(db, "fast")
    assert (row.state, words in (row.cause or ""), (row.hint or "").startswith(hint)) == (state, True, True)
    assert facts.get(db, model_dir.FACT)
