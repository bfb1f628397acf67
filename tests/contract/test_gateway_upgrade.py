"""After an upgrade of mlxq the worker brings the gateway up by itself, whatever an older version left behind."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from support import loopback
from support.gateway import Upstream
from support.load import Load
from support.mlxq_home import Mlxq, until
from support.ports import free_port
from support.recovery import up_with_gateway

from state import on_demand, secrets, service, settings, stack
from state.paths import Home
from tasks.system import process

pytestmark = pytest.mark.slow
GATEWAY = "gateway"
OLD = "model_list:\n- model_name: standard\n"


@pytest.fixture
def mlxq(home: Home, every_upstream: dict[str, Upstream]) -> Iterator[Mlxq]:
    """Return a home whose stack is the tier `standard`, which a stand-in serves."""
    settings.write(home, "litellm-port", free_port())
    every_upstream["standard"].start()
    made = Mlxq(home)
    stack.replace(made.db, [every_upstream["standard"].tier()])
    yield made
    made.close()


def want_gateway(mlxq: Mlxq) -> None:
    """Write down, as `mlxq up` of the older version did, that a gateway is wanted."""
    service.ensure(mlxq.db, GATEWAY, GATEWAY, settings.load(mlxq.home)["litellm-port"])
    service.set_desired(mlxq.db, GATEWAY, "up")


def answers(home: Home) -> int:
    """Return the status of one chat request to the tier `standard`."""
    key = secrets.read(home.secrets)[secrets.MASTER]
    body = {"model": "standard", "messages": [{"role": "user", "content": "say hi"}]}
    url = f"http://127.0.0.1:{settings.load(home)['litellm-port']}/v1/chat/completions"
    return loopback.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code


def test_a_home_with_the_configuration_of_litellm_alone_serves_again(home: Home, mlxq: Mlxq):
    """Nobody types a command: the worker writes gateway.yaml, removes litellm.yaml, and starts the gateway."""
    (home.root / "litellm.yaml").write_text(OLD)
    want_gateway(mlxq)
    mlxq.work()

    mlxq.await_doing(service.State.READY, GATEWAY)
    assert answers(home) == 200
    assert home.gateway_config.stat().st_mode & 0o077 == 0
    until(lambda: not (home.root / "litellm.yaml").exists())
    assert "old_configuration_removed" in home.log("worker").read_text()


def test_a_configuration_that_is_lost_is_written_with_the_next_start(home: Home, mlxq: Mlxq):
    """As after a restored backup, while the worker runs: the restart that a death queues writes it."""
    mlxq.work()
    before = mlxq.up(GATEWAY)
    home.gateway_config.unlink()
    process.send(mlxq.identity(GATEWAY), 9)

    mlxq.await_next(before)
    assert answers(home) == 200


@pytest.mark.parametrize("left", [OLD.encode(), b"\xff\xfe\x00"])
def test_a_gateway_that_runs_by_an_older_configuration_is_replaced(home: Home, mlxq: Mlxq, left: bytes):
    """What this version would write otherwise is proven and applied once, by the next worker."""
    mlxq.work()
    before = mlxq.up(GATEWAY)
    mlxq.kill_worker()
    home.gateway_config.write_bytes(left)
    mlxq.work()

    after = mlxq.await_next(before)
    assert after.generation == before.generation + 1
    assert set(yaml.safe_load(home.gateway_config.read_text())["tiers"]) == {"standard"}
    assert answers(home) == 200
    assert "exited" not in mlxq.events(GATEWAY)


@pytest.mark.parametrize("killed", [False, True])
def test_an_engine_that_an_upgrade_changed_ends_its_answers_and_requests_wait(
    home: Home, builtin_model: Path, killed: bool
):
    """As the only engine of the stack: nothing stands in for it. Also where the worker dies meanwhile."""
    with closing(Mlxq(home)) as mlxq, ThreadPoolExecutor() as pool:
        mlxq.serve(builtin_model, "standard")
        mlxq.work_with_scripted(8)
        load = Load(up_with_gateway(mlxq, free_port()).port, secrets.read(home.secrets)[secrets.MASTER])
        before = mlxq.one("standard")

        def ask(order: str, *, stream: bool) -> None:
            with loopback.client(timeout=60) as client:
                load.ask(client, order, stream=stream)

        long = 'script {"tokens": 100, "pause_s": 0.1}'  # until the worker comes to the restart, however crowded it is
        asked = [pool.submit(ask, long, stream=stream) for stream in (True, False)]
        until(lambda: loopback.get(f"http://127.0.0.1:{before.port}/active").json()["generating"] == len(asked))
        service.update(mlxq.db, "standard", spec_hash="of the version before")
        replaced = mlxq.put("restart", service="standard", reason="upgraded")
        until(lambda: mlxq.one("standard").state == service.State.DRAINING)
        if killed:
            mlxq.kill_worker()
            mlxq.work_with_scripted(8)
        asked += [pool.submit(ask, "say hi", stream=stream) for stream in (True, False)]
        for future in asked:
            future.result()

        assert (load.answered, load.failures) == (len(asked), [])
        assert mlxq.ended(replaced).state == "succeeded"
        assert mlxq.one("standard").generation == before.generation + 1
        assert not on_demand.residency(mlxq.db, "standard").asleep


def test_a_gateway_that_is_not_wanted_stays_down(home: Home, mlxq: Mlxq):
    (home.root / "litellm.yaml").write_text(OLD)
    want_gateway(mlxq)
    service.set_desired(mlxq.db, GATEWAY, "down")
    mlxq.work()
    mlxq.ended(mlxq.put("stop", service=GATEWAY))

    assert mlxq.db.value("SELECT count(*) FROM jobs WHERE kind IN ('configure', 'restart')") == 0
    assert not home.gateway_config.exists()
