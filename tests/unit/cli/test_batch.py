"""`mlxq batch` asks and reads; the job is the worker's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.batching import line

from mlxq import cli, jobs_client
from state.batches import batches, stored_files
from state.batches.batches import BatchStatus
from state.db import Database
from state.paths import Home
from tasks.batches import ending


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_client, "ensure_worker", lambda _: None)


def run(rows: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Create a batch of one line, and return its id."""
    (tmp_path / "requests.jsonl").write_text(line("a"))
    assert cli.run(["batch", "run", str(tmp_path / "requests.jsonl"), *words]) == 0
    return capsys.readouterr().out.strip()


def test_a_batch_is_created_shown_and_cancelled(
    rows: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = run(rows, tmp_path, capsys, "--tier", "fast")
    batch = batches.get(rows, name)
    assert (batch.owner, batch.tier, batch.endpoint, batch.cloud) == ("mlxq", "fast", "/v1/chat/completions", False)
    assert rows.value("SELECT queue FROM jobs WHERE kind = 'batch'") == "bulk"
    assert cli.run(["batch", "list", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["batches"]] == [name]
    assert cli.run(["batch", "output", name]) == 3
    assert cli.run(["batch", "cancel", name]) == 0
    assert cli.run(["batch", "show", name]) == 0
    assert "cancelling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.jsonl is empty."),
        ("\n  \n", "r.jsonl is empty."),
        ("\nhello\n", "Line 2 of r.jsonl is no request. This line is not a JSON object."),
        ("[]", "Line 1 of r.jsonl is no request. This line is not a JSON object."),
        ('{"url": ["/v1/embeddings"]}', "Line 1 of r.jsonl is no request: its `url` is none of /v1/chat/completions,"),
        (line("a").replace("chat", "shell"), "Line 1 of r.jsonl is no request: its `url` is none of"),
    ],
)
def test_a_file_that_is_no_batch_is_refused_with_its_line(
    rows: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    assert cli.run(["batch", "run", str(tmp_path / "r.jsonl")]) == 2
    assert problem in capsys.readouterr().err
    assert rows.value("SELECT count(*) FROM files") == 0


def test_the_list_fits_on_80_columns(rows: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(rows, tmp_path, capsys)
    rows.run("UPDATE batches SET status = 'in_progress', total = 99999, succeeded = 9999, errored = 2, unanswered = 1")
    assert cli.run(["batch", "list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["BATCH", "KEY", "STATUS", "ANSWERED", "FAILED", "CREATED"]
    assert row.split()[2:5] == ["in_progress", "9999/99999", "3"]
    assert len(row) <= 80


def test_the_output_of_an_ended_batch_is_written(
    rows: Database, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = run(rows, tmp_path, capsys)
    batch = batches.get(rows, name)
    stored_files.path(home, str(batch.output_file)).write_text('{"custom_id": "a"}\n')
    rows.run("UPDATE batches SET status = 'finalizing', output_bytes = 19, succeeded = 1, total = 1")
    ending.finish(rows, batches.get(rows, name), BatchStatus.COMPLETED)
    assert cli.run(["batch", "output", name, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_text() == '{"custom_id": "a"}\n'
    assert cli.run(["batch", "output", name, "--errors", "--out", str(tmp_path / "errors")]) == 0
    capsys.readouterr()
    assert cli.run(["batch", "output", name, "--errors"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", f"The batch {name} has no failed requests.")
    assert (tmp_path / "errors").read_text() == ""
    assert cli.run(["batch", "cancel", name]) == 1


@pytest.mark.parametrize(("ends", "code"), [("completed", 0), ("cancelled", 1), ("expired", 1)])
def test_waiting_for_a_batch_that_is_ended_early_fails(
    rows: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, code: int
) -> None:
    """Its job succeeds, and what it answered is written; a script must not take it for all of the answers."""

    def end(*_: object, **__: object) -> None:
        batch = batches.listing(rows)[0]
        stored_files.path(rows.home, str(batch.output_file)).write_text('{"custom_id": "a"}\n')
        rows.run("UPDATE batches SET status = ?, output_bytes = 19, succeeded = 1, total = 2", (ends,))

    monkeypatch.setattr(jobs_client, "follow", end)
    (tmp_path / "requests.jsonl").write_text(line("a"))
    out = tmp_path / "out.jsonl"
    assert cli.run(["batch", "run", str(tmp_path / "requests.jsonl"), "--out", str(out)]) == code
    assert out.read_text() == '{"custom_id": "a"}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [("no json", []), (line("a", url="/v1/audio/speech"), []), (line("a"), ["--tier", "nope"]), (None, [])],
)
def test_a_file_that_is_no_batch_is_refused_at_once(
    rows: Database, home: Home, tmp_path: Path, content: str | None, words: list[str]
) -> None:
    path = tmp_path / "requests.jsonl"
    if content is not None:
        path.write_text(content)
    assert cli.run(["batch", "run", str(path), *words]) == (1 if words or content is None else 2)
    assert batches.listing(rows) == []
    assert not home.files.exists() or list(home.files.iterdir()) == []
