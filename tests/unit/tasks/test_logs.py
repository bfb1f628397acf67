"""What is too big is found, rotated or capped, and shown."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.here import runner

from mlxq import cli, jobs_client
from mlxq.commands import logs as command
from state import settings, stack
from state.db import Database
from state.paths import Home
from state.stack import Engine
from tasks import logs
from tasks.system import log_rotation, prompt_cache

FAST = Engine("fast", "m", "int4", "file:/m", 9251, 2048, 2**30, cache_bytes=1000, concurrency=1)


def filled(home: Home, tier: str, model: str, size: int, age_s: float) -> Path:
    folder = home.root / "cache" / tier / model
    (folder / "hash").mkdir(parents=True)
    (folder / "hash" / "entry_0.safetensors").write_bytes(b"x" * size)
    os.utime(folder, (1e9 - age_s, 1e9 - age_s))
    return folder


def test_only_logs_beyond_the_setting_are_too_big(home: Home) -> None:
    settings.write(home, "log-max-size-mb", 1)
    home.log("fast").write_bytes(b"x" * (10**6 + 1))
    home.log("gateway").write_bytes(b"x" * 10**6)

    assert logs.too_big(home) == ["fast"]


def test_old_prompts_go_when_they_are_more_than_the_tier_may_keep(home: Home) -> None:
    old, new = filled(home, "fast", "a", 800, age_s=60), filled(home, "fast", "b", 900, age_s=0)

    assert prompt_cache.size(home.root / "cache" / "fast") == 1700
    assert prompt_cache.cap(home.root / "cache" / "fast", 1000) == 800
    assert (old.exists(), new.exists()) == (False, True)


def test_the_empty_folder_of_an_engine_that_starts_stays(home: Home) -> None:
    """It ended at its first temporary file, where its folder was swept meanwhile."""
    temporary = home.root / "cache" / "engine-1" / "images" / "videos"
    temporary.mkdir(parents=True)
    filled(home, "engine-1", "a", 800, age_s=-60)

    assert prompt_cache.cap(home.root / "cache" / "engine-1", 0) == 800
    assert temporary.exists()


def test_a_tier_that_is_gone_keeps_no_prompts(home: Home, db: Database) -> None:
    stack.replace(db, [FAST])
    filled(home, "fast", "a", 800, age_s=0)
    filled(home, "gone", "a", 800, age_s=0)

    freed = {folder.name: prompt_cache.cap(folder, limit) for folder, limit in logs._caches(db, home).items()}

    assert freed == {"fast": 0, "gone": 800}


def test_all_old_prompts_together_are_bounded_and_the_newest_stay(
    home: Home, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "GB", 1000)
    settings.write(home, "cache-max-gb", 1)
    stack.replace(db, [FAST, replace(FAST, name="standard", port=9252)])
    filled(home, "fast", "a", 800, age_s=60)
    filled(home, "standard", "a", 700, age_s=0)

    freed = {folder.name: prompt_cache.cap(folder, limit) for folder, limit in logs._caches(db, home).items()}

    assert freed == {"standard": 0, "fast": 800}


def test_old_prompts_go_when_a_user_wants_them_gone(
    home: Home, db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack.replace(db, [FAST])
    filled(home, "fast", "a", 800, age_s=0)
    assert cli.run(["prune", "--cache", "--dry-run"]) == 0
    assert "Engines keep 800 B of old prompts on disk" in capsys.readouterr().err
    assert cli.run(["prune", "--cache"]) == 2

    assert runner(db, home, {"prune_cache": logs.prune_cache}, monkeypatch)("prune_cache").result == {"bytes": 800}
    assert prompt_cache.size(home.root / "cache" / "fast") == 0


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5000, 20000])
@pytest.mark.parametrize("text", [b"", b"a\n", b"a\nb", b"a\n\nb\n", b"%d\n" * 9999 % tuple(range(9999))])
def test_the_last_lines_are_found_from_the_end(text: bytes, count: int) -> None:
    file = io.BytesIO(text)

    command._seek_back(file, count)

    assert file.read().splitlines() == text.splitlines()[-count:] * bool(count)


def test_all_of_a_log_begins_with_its_archives(
    home: Home, db: Database, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for word in ("one\n", "two\n", "three\n"):
        home.log("fast").write_text(word)
        if word != "three\n":
            log_rotation.rotate(home.log("fast"), 3, logs._own_silence)

    cli.run(["logs", "fast", "--all"])

    assert capfdbinary.readouterr().out == b"one\ntwo\nthree\n"


def test_the_worker_has_a_log_too(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    home.log("worker").write_text("one\ntwo\n")
    home.log("fast").write_text("three\n")

    assert cli.run(["logs", "worker", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "two\n"
    assert cli.run(["logs", "worker", "--json"]) == 0
    assert [json.loads(line)["line"] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
    assert cli.run(["logs", "--json"]) == 0
    assert [log["name"] for log in json.loads(capsys.readouterr().out)["logs"]] == ["fast", "worker"]
    assert cli.run(["logs", "worker", "--json", "--all"]) == 2


def test_a_person_may_rotate_now(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    home.log("fast").write_text("one\n")
    try:
        assert cli.run(["logs", "fast", "--rotate"]) == 0
    finally:
        jobs_client.stop_idle_worker(home)

    assert "Rotated fast: 4 B." in capsys.readouterr().out
    assert home.log("fast").read_text() == ""
