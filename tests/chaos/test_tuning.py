"""`bench --tune`: what is faster is used, a tier is never cut off for it, and comes back however the job ends.

The worker, uv, the index, the environment and the processes are real; the release of rapid-mlx that is five times as
fast with prompt lookup is that of tests/support/tiny_engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import package_index, tiny_engine
from support.mlxq_home import Mlxq, until
from support.package_index import PackageIndex

from catalog.machine import from_row
from mlxq import cli
from state import facts, secrets, settings
from state.metrics import tuning
from state.service import ROUTED
from tasks import bench
from tasks import tuning as tune
from tasks.engines import reuse
from tasks.supervision import probe
from tasks.system import hardware

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

VERSION = "9.0.0"
RELEASE = f"rapid-mlx {VERSION}"
FLAG = "--speculative-config"
Install = Callable[[str], None]


@pytest.fixture
def install(mlxq: Mlxq, builtin_model: Path, tmp_path: Path) -> Iterator[Install]:
    """Yield what installs a release that behaves as it is told, and starts the tier on it."""
    settings.write(mlxq.home, "model-dir", str(builtin_model.parent))
    settings.write(mlxq.home, "engine", "rapid-mlx")
    settings.write(mlxq.home, "max-restarts", 1)
    with package_index.running(PackageIndex()) as index:

        def make(how: str = "good") -> None:
            wheel = tiny_engine.make(tmp_path / VERSION, VERSION, how)
            index.add(wheel)
            tiny_engine.lock(mlxq.home.engines, wheel)
            mlxq.work(**index.environment(tmp_path / "uv"), UV_HTTP_TIMEOUT="2")
            done = mlxq.ended(mlxq.put("install_engine", engine="rapid-mlx", version=VERSION))
            assert done.state == "succeeded", (done.error, mlxq.logs())
            mlxq.up()

        yield make


def command_line(mlxq: Mlxq, name: str = "fast") -> list[str]:
    """Return the command line of the process that serves a tier."""
    row = mlxq.one(name)
    assert row.pid
    return Path(f"/proc/{row.pid}/cmdline").read_text().split("\0")


def idle(mlxq: Mlxq) -> None:
    until(lambda: not mlxq.db.value("SELECT count(*) FROM jobs WHERE state IN ('blocked', 'queued', 'running')"))


def tuned(mlxq: Mlxq) -> dict[str, Any]:
    done = mlxq.ended(mlxq.put("tune", target="fast"))
    assert done.state == "succeeded", (done.error, mlxq.logs())
    idle(mlxq)
    assert done.result
    return done.result


def serves(mlxq: Mlxq, name: str = "fast") -> None:
    until(lambda: mlxq.one(name).state in ROUTED)
    row = mlxq.one(name)
    probe.one_token(row.port, secrets.read(mlxq.home.secrets)[secrets.TIER], name, 60)


def test_what_is_faster_with_the_same_answers_is_used_until_it_is_taken_back(
    mlxq: Mlxq, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("good")
    before = mlxq.one().generation
    result = tuned(mlxq)

    rows = {row["tuning"]: row["objection"] for row in result["tried"]}
    assert (result["used"], result["release"]) == ("prompt-lookup", RELEASE)
    assert 1.6 < result["gain"] < 5.5
    assert list(rows) == ["as it is", "prompt-lookup", "kv-int8", "kv-int4"]
    assert (rows["kv-int4"], rows["prompt-lookup"]) == ("gives other greedy answers", None)
    assert "times as fast" in rows["kv-int8"]
    serves(mlxq)
    assert FLAG in command_line(mlxq)
    assert mlxq.one().generation == before + 1, "one restart, and the tier served meanwhile"
    assert cli.run(["status"]) == 0
    assert "prompt-lookup, " in capsys.readouterr().out

    assert cli.run(["bench", "fast", "--no-tune"]) == 0
    idle(mlxq)
    serves(mlxq)
    assert FLAG not in command_line(mlxq)
    assert tuning.find(mlxq.db, RELEASE, mlxq.source()) is None


def test_a_tuning_with_which_the_tier_does_not_start_is_taken_back(mlxq: Mlxq, install: Install) -> None:
    install("brittle")
    assert tuned(mlxq)["used"] == "prompt-lookup"
    serves(mlxq)

    assert FLAG not in command_line(mlxq)
    assert tuning.find(mlxq.db, RELEASE, mlxq.source()) is None
    assert "tuning_taken_back" in mlxq.events("fast")
    assert mlxq.one().release == RELEASE


def test_where_memory_admits_no_other_engine_the_tier_is_drained_and_comes_back(
    mlxq: Mlxq, install: Install, tiny: Path
) -> None:
    """Alone it is left as it is. The worker is killed in the middle: the tier serves again, and the job is done."""
    mlxq.serve(tiny, "fast", "standard")
    install("good")
    crowd(mlxq, tiny, beside=0)
    refused = mlxq.ended(mlxq.put("tune", target="fast"))
    assert (refused.error_code, mlxq.one().generation) == ("does_not_fit", 1)

    mlxq.up("standard")
    crowd(mlxq, tiny, beside=mlxq.one("standard").memory_bytes or 0)
    mlxq.ended(mlxq.put("tune", target="fast"))
    drained = mlxq.db.value("SELECT id FROM jobs WHERE kind = 'tune' AND service = 'fast'")
    until(lambda: "timing" in (mlxq.db.value("SELECT phase FROM jobs WHERE id = ?", (drained,)) or ""))
    assert mlxq.one().state not in ROUTED
    serves(mlxq, "standard")
    mlxq.kill_worker()
    mlxq.work()
    done = mlxq.ended(drained)

    assert done.state == "succeeded", (done.error, mlxq.logs())
    assert done.result
    assert done.result["used"] == "prompt-lookup", done.result
    idle(mlxq)
    serves(mlxq)
    assert FLAG in command_line(mlxq)


def crowd(mlxq: Mlxq, tiny: Path, *, beside: int) -> None:
    """Leave memory for the engine that is tried, and for `beside` bytes of others: not for the tier's own with it."""
    shape = {"prompt_tokens": 2 * reuse.TURN_TOKENS, "gen_tokens": tune.SLOW, "concurrency": [tune.AT_ONCE]}
    need = bench.described(tiny, mlxq.source(), {}, shape).memory_bytes
    machine = from_row(facts.get(mlxq.db, "machine") or hardware.detect().as_row())
    facts.put(mlxq.db, "machine", replace(machine, usable_bytes=need + beside + 5 * 2**20).as_row())
