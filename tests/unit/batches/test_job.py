"""The job of a batch without a gateway: its check, its end, and the results that are written once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.batching import Batching, batching, file_of, line
from support.clock import Clock
from support.disk import fill, mounted
from support.ports import free_port

from state import ledger
from state.batches import batches, lines, stored_files
from state.batches.batches import Batch, BatchStatus
from state.errors import MlxqError
from state.job import JobState
from tasks.batches import answering, control
from tasks.batches.gateway_lines import LineAnswer
from tasks.batches.results import LineResult, ResultFiles
from tasks.plan import batch as plan

ANSWER = LineAnswer(200, b'{"choices": []}', "req_1", 0.0)


@pytest.fixture
def here(tmp_path: Path, home: Any) -> Iterator[Batching]:
    """Make a home whose gateway does not run."""
    gateway: Any = SimpleNamespace(home=home.root, secrets={"LITELLM_MASTER_KEY": "sk-m"}, port=free_port())
    made = batching(gateway)
    made.db.clock = Clock()
    yield made
    made.db.close()


def later(here: Batching, seconds: float) -> None:
    clock: Any = here.db.clock
    clock.now += seconds


def codes(batch: Batch) -> list[tuple[str, int | None]]:
    return [(error["code"], error["line"]) for error in batch.errors]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([line("a"), "no json", line("b")], [("invalid_json_line", 2)]),
        ([line("a"), line("b"), line("a")], [("duplicate_custom_id", 3)]),
        ([line("a"), line("b", model="fast")], [("mismatched_model", 2)]),
        ([line("a"), line("b", url="/v1/embeddings")], [("mismatched_endpoint", 2)]),
        ([""], [("empty_file", None)]),
        (["no json"] * 300, [("invalid_json_line", n) for n in range(1, 101)]),
    ],
    ids=["no-json", "duplicate", "models", "endpoints", "empty", "many"],
)
def test_a_file_that_is_no_batch_fails_with_its_lines(
    here: Batching, texts: list[str], expected: list[tuple[str, int | None]]
) -> None:
    batch = here.answered(file_of(texts))
    assert batch.status == BatchStatus.FAILED
    assert codes(batch) == expected
    assert lines.unanswered(here.db, batch, 0) == []


def test_a_batch_whose_file_is_deleted_before_its_check_fails(here: Batching) -> None:
    batch = here.batch(file_of([line("a")]))
    stored_files.delete(here.db, batch.input_file, batch.owner)
    here.work()
    assert codes(batches.get(here.db, batch.id)) == [("file_deleted", None)]


def checked(here: Batching, count: int, **given: Any) -> Batch:
    """Return a batch whose lines are checked, with no answer yet."""
    batch = here.batch(file_of(line(f"c{n}") for n in range(count)), **given)
    control.cancel(here.db, batch)
    here.db.run("UPDATE batches SET status = 'validating' WHERE id = ?", (batch.id,))
    context: Any = SimpleNamespace(db=here.db, home=here.home, report=lambda *_, **__: None)
    answering.validate(context, batch, answering.GatewayLines(here.home, batch))
    return batches.get(here.db, batch.id)


def every_id(here: Batching, batch: Batch) -> list[str]:
    output, errors = here.results(batches.get(here.db, batch.id))
    return sorted(row["custom_id"] for row in (*output, *errors))


def test_a_deleted_file_in_the_middle_ends_its_lines_as_errors(here: Batching) -> None:
    batch = checked(here, 3)
    stored_files.delete(here.db, batch.input_file, batch.owner)
    here.work()
    batch = batches.get(here.db, batch.id)
    assert (batch.status, batch.errored) == (BatchStatus.COMPLETED, 3)
    assert {row["error"]["code"] for row in here.results(batch)[1]} == {"file_deleted"}


def write_one(here: Batching, batch: Batch) -> None:
    results = ResultFiles(here.db, batch)
    results.write([LineResult(lines.unanswered(here.db, batch, 0)[0], ANSWER)])
    results.close()


@pytest.mark.parametrize("ends", ["expired", "cancelled"])
def test_a_batch_that_ends_early_tells_of_each_line(here: Batching, ends: str) -> None:
    batch = checked(here, 450)
    write_one(here, batch)
    if ends == "expired":
        later(here, 86401)
    else:
        control.cancel(here.db, batch)
    here.work()

    batch = batches.get(here.db, batch.id)
    assert (batch.status, batch.succeeded, batch.unanswered) == (ends, 1, 449)
    assert every_id(here, batch) == sorted(f"c{n}" for n in range(450))
    assert {row["error"]["code"] for row in here.results(batch)[1]} == {f"batch_{ends}"}
    assert stored_files.get(here.db, str(batch.output_file), "mlxq").bytes == batch.output_bytes


def test_a_line_of_the_results_is_one_however_lines_are_split(here: Batching) -> None:
    batch = checked(here, 1)
    results = ResultFiles(here.db, batch)
    words = "\x85 \u2028 \u2029 \x0b ü"
    answer = LineAnswer(200, json.dumps({"text": words}, ensure_ascii=False).encode(), "req_1", 0.0)
    results.write([LineResult(lines.unanswered(here.db, batch, 0)[0], answer)])
    results.close()
    (row,) = here.results(batch)[0]
    assert row["response"]["body"]["text"] == words


def test_what_a_killed_worker_wrote_and_did_not_record_is_written_once(here: Batching) -> None:
    batch = checked(here, 3)
    write_one(here, batch)
    batch = batches.get(here.db, batch.id)
    with stored_files.path(here.home, str(batch.output_file)).open("ab") as torn:
        torn.write(b'{"custom_id": "c1", "response": {"stat')
    stored_files.path(here.home, str(batch.error_file)).write_bytes(b'{"custom_id": "c2"}\n')

    write_one(here, batches.get(here.db, batch.id))
    control.cancel(here.db, batch)
    here.work()
    assert every_id(here, batch) == ["c0", "c1", "c2"]


def test_lines_are_written_once_through_a_full_disk(here: Batching, tmp_path: Path) -> None:
    batch = checked(here, 2000)
    here.home.files.rename(tmp_path / "files")
    with mounted(here.home.files, "1m"):
        for file in (tmp_path / "files").iterdir():
            (here.home.files / file.name).write_bytes(file.read_bytes())
        fill(here.home.files / "filler")
        control.cancel(here.db, batch)
        job = here.work()
        assert (job.state, job.phase) == (JobState.QUEUED, "waits for room on the disk")
        assert batches.get(here.db, batch.id).status == BatchStatus.CANCELLING

        (here.home.files / "filler").unlink()
        later(here, 60)
        here.work()
        assert batches.get(here.db, batch.id).status == BatchStatus.CANCELLED
        assert every_id(here, batch) == sorted(f"c{n}" for n in range(2000))


def test_the_answers_are_written_to_a_file_of_the_users(here: Batching, tmp_path: Path) -> None:
    batch = checked(here, 2)
    write_one(here, batch)
    context: Any = SimpleNamespace(db=here.db, home=here.home)
    out = tmp_path / "answers.jsonl"
    out.write_text("of last night")
    answering.write_batch_output(context, batch.id, str(out))
    assert [json.loads(text)["custom_id"] for text in out.read_text().splitlines()] == ["c0"]
    with pytest.raises(MlxqError, match="Cannot write /proc/answers"):
        answering.write_batch_output(context, batch.id, "/proc/answers")


@pytest.mark.parametrize(("step", "status"), [("failed", "failed"), ("cancelled", "cancelled")])
def test_a_batch_whose_job_has_ended_without_it_is_settled(here: Batching, step: str, status: str) -> None:
    batch = checked(here, 3)
    write_one(here, batch)
    number = here.db.value("SELECT id FROM jobs WHERE kind = 'batch'")
    if step == "cancelled":
        ledger.cancel(here.db, number)
    else:
        here.db.run("UPDATE jobs SET state = 'failed', error = 'It broke.', finished_at = 1 WHERE id = ?", (number,))
    answering.settle(here.db)

    batch = batches.get(here.db, batch.id)
    assert batch.status == status
    assert every_id(here, batch) == ["c0", "c1", "c2"]
    assert [error["message"] for error in batch.errors] == ([f"Job {number}: It broke."] if step == "failed" else [])
    answering.settle(here.db)


def test_outside_of_the_window_a_batch_waits_for_it(here: Batching, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = checked(here, 1)
    monkeypatch.setattr(answering, "window_s", lambda *_: 3600.0)
    job = here.work()
    assert (job.state, job.phase, round(job.run_at - here.db.now())) == (
        JobState.QUEUED,
        "waits for the bulk window",
        3600,
    )
    control.cancel(here.db, batch)
    here.work()
    assert batches.get(here.db, batch.id).status == BatchStatus.CANCELLED


def test_old_batches_and_files_are_pruned(here: Batching) -> None:
    old = here.answered(file_of([""]))
    stray = here.home.files / ".upload-0"
    stray.write_bytes(b"cut off")
    os.utime(stray, (0, 0))
    new_input = here.batch(file_of([line("a")])).input_file
    os.utime(stored_files.path(here.home, new_input), (0, 0))
    assert (stored_files.prune(here.db), stray.exists()) == (0, False)
    later(here, 31 * 86400)
    assert batches.prune(here.db) == 1
    assert batches.find(here.db, old.id) is None
    assert stored_files.prune(here.db) == 2
    assert not stored_files.path(here.home, old.input_file).exists()


@pytest.mark.parametrize(
    ("status", "body", "tries", "waits"),
    [
        (200, {}, 1, None),
        (400, {}, 1, None),
        (503, {}, 50, 30.0),
        (429, {}, 1, 7.0),
        (500, {}, 1, 1.0),
        (500, {}, 3, None),
        (422, {"error": {"code": "schema_mismatch"}}, 1, 1.0),
        (422, {"error": {"code": "request_kills_tiers"}}, 1, None),
        (502, ["no object"], 2, 2.0),
    ],
)
def test_a_line_is_sent_again_as_its_failure_deserves(status: int, body: Any, tries: int, waits: float | None) -> None:
    assert plan.retry_wait_s(status, body, tries, 7.0 if status == 429 else 0.0) == waits


@pytest.mark.parametrize(
    ("window", "clock", "opens_in_s"),
    [
        ("", (12, 0), 0),
        ("22:00-07:00", (23, 0), 0),
        ("22:00-07:00", (6, 59), 0),
        ("22:00-07:00", (7, 0), 15 * 3600),
        ("09:30-10:00", (9, 0), 1800),
    ],
)
def test_the_window_opens(window: str, clock: tuple[int, int], opens_in_s: int) -> None:
    assert plan.window_opens_in_s(window, *clock) == opens_in_s
