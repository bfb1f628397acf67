"""The jobs pull, check and remove, run as the worker runs them, against a Hub that misbehaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hub.client import COMMIT, Hub
from support.here import Run, runner

from state import job, ledger, stack, weights
from state.db import Database
from state.job import JobState
from state.paths import Home
from state.stack import Engine
from tasks import executor, kinds, pull
from tasks.weights import staging
from tasks.weights.formats import headers

SOURCE = "hub:ok/tiny-4bit"
TASKS = {"pull": pull.pull, "verify_weights": pull.verify_weights, "remove_weights": pull.remove_weights}


@pytest.fixture(autouse=True)
def outside(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the Hub's settings at the small one."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.set(failures=2, retry_after=1)


@pytest.fixture
def run(db: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Put one job in, run it here, and give its row as it is then."""
    return runner(db, home, TASKS, monkeypatch)


@pytest.fixture
def tier(db: Database) -> Engine:
    """Make a stack of one tier that wants the weights."""
    wanted = Engine("fast", "tiny", "int4", SOURCE, 8000, 4096, 1, 1, 1)
    stack.replace(db, [wanted])
    return wanted


def test_a_pull_tells_the_tier_where_its_weights_are(run: Run, db: Database, tier: Engine):
    done = run("pull", source=SOURCE)
    assert (done.state, done.result["fetched"], done.result["revision"]) == (JobState.SUCCEEDED, True, COMMIT)
    folder = done.result["folder"]
    assert replace(tier, weights=folder) == stack.engine(db, "fast")
    row = weights.at(db, folder)
    assert row
    assert row == weights.newest(db, SOURCE) == weights.listing(db)[0]
    found = headers.inventory(Path(folder))
    assert (found.parameters, found.size, found.kv_bytes_per_token) == (
        row.parameters,
        row.size,
        row.kv_bytes_per_token,
    )
    assert row.loaded_at is None
    weights.loaded(db, folder)
    assert weights.at(db, folder) == replace(row, loaded_at=db.now())


def test_what_is_here_needs_no_hub(run: Run, db: Database, tier: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """Setting up again works offline, also with a new database over old weights."""
    folder = run("pull", source=SOURCE).result["folder"]
    weights.forget(db, folder)
    assert stack.engine(db, "fast").weights == ""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = run("pull", source=SOURCE)
    assert (JobState.SUCCEEDED, False, folder) == (again.state, again.result["fetched"], again.result["folder"])
    assert folder == stack.engine(db, "fast").weights
    assert weights.at(db, folder)


def test_a_pull_that_may_go_better_later_is_retried_and_one_that_may_not_fails(run: Run):
    down = run("pull", source="hub:html/tiny-4bit")
    assert (down.state, down.error_code, down.failures) == (JobState.QUEUED, "offline", 1)
    closed = run("pull", source="hub:gated/tiny-4bit")
    assert (closed.state, closed.error_code) == (JobState.FAILED, "gated")
    assert closed.hint


def test_a_pause_the_hub_asks_for_gives_the_lane_back(run: Run, db: Database, hub: Hub):
    hub.set(failures=100, retry_after=77)
    paused = run("pull", source="hub:apilimit/tiny-4bit")
    assert (JobState.QUEUED, 0, db.now() + 77) == (paused.state, paused.failures, paused.run_at)


def test_a_pull_of_a_folder_that_another_one_makes_waits_for_it(run: Run, db: Database, home: Home):
    """Two pulls are two jobs when they name different revisions; both may mean the same commit."""
    with staging.hold(home.models / f"ok--tiny-4bit@{COMMIT[:12]}"):
        waits = run("pull", source=SOURCE, revision=COMMIT)
    assert (waits.state, waits.failures, waits.run_at) == (JobState.QUEUED, 0, db.now() + pull.AGAIN_S)


def test_force_asks_the_hub_again(run: Run):
    fetched = [run("pull", source=SOURCE, force=force).result["fetched"] for force in (False, False, True)]
    assert fetched == [True, False, True]


@pytest.mark.parametrize("source", [SOURCE, f"{SOURCE}@main"])
def test_damaged_weights_go_out_of_use_and_are_pulled_again(run: Run, db: Database, tier: Engine, source: str):
    stack.replace(db, [replace(tier, source=source)])
    folder = Path(run("pull", source=source).result["folder"])
    assert run("verify_weights", folder=str(folder)).result == {"damaged": []}
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    found = run("verify_weights", folder=str(folder))
    assert {"damaged": [shard.name]} == found.result
    assert stack.engine(db, "fast").weights == ""
    following = next(each for each in job.of_chain(db, found.chain) if each.kind == "pull")
    assert following.args == {"source": source, "revision": COMMIT}
    assert perform(db, "pull").state is JobState.SUCCEEDED
    assert str(folder) == stack.engine(db, "fast").weights
    assert run("verify_weights", folder=str(folder)).result == {"damaged": []}


def perform(db: Database, kind: str) -> job.Job:
    """Run the job of this kind that waits, and give its row as it is then."""
    held = ledger.claim(db, kinds.KINDS[kind].queue, {kind}, "the worker")
    assert held
    executor.perform(kinds.KINDS[kind], TASKS[kind], held)
    return job.get(db, held.id)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the worker runs any more."""


@pytest.mark.parametrize("kind", ["verify_weights", "remove_weights"])
def test_weights_whose_worker_died_as_they_were_taken_away_are_forgotten_by_the_next_try(
    kind: str, run: Run, db: Database, tier: Engine, monkeypatch: pytest.MonkeyPatch
):
    """And pulled again, where that was meant."""
    folder = Path(run("pull", source=SOURCE).result["folder"])
    (folder / "config.json").write_text("{}")
    force = {"force": True} if kind == "remove_weights" else {}

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(weights, "forget", die)
        with pytest.raises(Killed):
            run(kind, folder=str(folder), **force)
    assert not folder.exists()
    ledger.rescue(db, ledger.running(db))
    again = perform(db, kind)

    assert (again.attempt, again.error_code) == (2, "not_found")
    assert (weights.listing(db), stack.engine(db, "fast").weights) == ([], "")
    if kind == "verify_weights":
        assert perform(db, "pull").state is JobState.SUCCEEDED
        assert str(folder) == stack.engine(db, "fast").weights


def test_weights_that_are_served_are_removed_only_by_force(run: Run, db: Database, tier: Engine):
    folder = run("pull", source=SOURCE).result["folder"]
    refused = run("remove_weights", folder=folder)
    assert (refused.state, refused.error_code) == (JobState.FAILED, "busy")
    assert Path(folder).exists()
    removed = run("remove_weights", folder=folder, force=True)
    assert removed.result["bytes"] > 2 << 20
    assert not Path(folder).exists()
    assert weights.listing(db) == []
    assert stack.engine(db, "fast").weights == ""


@pytest.mark.parametrize("kind", ["verify_weights", "remove_weights"])
@pytest.mark.parametrize("place", ["/etc", "models/../..", "models/.locks", "models/never"])
def test_only_folders_of_weights_are_touched(kind: str, place: str, run: Run, home: Home):
    (home.models / ".locks").mkdir(parents=True)
    refused = run(kind, folder=str(home.root / place))
    assert refused.state is JobState.FAILED
    assert refused.error_code in {"usage", "not_found"}
    assert (home.models / ".locks").exists()


def test_the_built_in_model_is_the_only_one_from_pypi(run: Run):
    refused = run("pull", source="pypi:requests==2.0")
    assert (refused.state, refused.error_code) == (JobState.FAILED, "not_found")


def test_a_pull_of_a_named_revision_serves_who_asked_for_the_source(run: Run, db: Database, tier: Engine):
    folder = run("pull", source=SOURCE, revision=COMMIT).result["folder"]
    assert folder == stack.engine(db, "fast").weights
