"""Models that are loaded when they are asked for, with a real worker and gateway over small engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from io import BytesIO
from itertools import pairwise

import httpx
import pytest
from support.batching import file_of, line
from support.mlxq_home import Mlxq, until
from support.on_demand import GIB, MIN_STAY_S, all_asleep, ask, asking, loaded, make, states, swaps, up

from state import on_demand, settings
from state.batches import batches
from state.paths import Home
from tasks.batches import control
from tasks.system import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FAKES = ("--load", "1.0")


@pytest.fixture(scope="module")
def mlxq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlxq]:
    made = make(Home(tmp_path_factory.mktemp("demand") / "home").make())
    made.work_with_fakes(*FAKES)
    up(made)
    yield made
    made.close()


@pytest.fixture
def asleep(mlxq: Mlxq) -> Iterator[Mlxq]:
    """Return the stack with all models on demand asleep."""
    yield mlxq
    all_asleep(mlxq)


def test_ten_clients_of_a_sleeping_model_start_it_once(asleep: Mlxq) -> None:
    before = states(asleep)
    assert (before["alpha"], before["beta"], before["standard"]) == ("sleeping", "sleeping", "serving")
    assert before["smollm2-135m"] == "serving"
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(asleep, "alpha"), range(10)))

    assert [answer.status_code for answer in answers] == [200] * 10, answers[0].text
    assert {answer.headers["x-mlxq-tier"] for answer in answers} == {"alpha"}
    assert asleep.events("alpha.int4").count("spawned") == 1
    assert states(asleep)["alpha"] == "serving"


def test_two_models_of_which_one_fits_take_turns(asleep: Mlxq) -> None:
    """No answer is cut, no one starves, and there is at most one swap in each `min-stay`."""
    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(lambda name: [ask(asleep, name) for _ in range(3)], name) for name in ("alpha", "beta")]
        answers = [answer for client in clients for answer in client.result()]

    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert swaps(asleep)
    assert all(later - earlier >= MIN_STAY_S for earlier, later in pairwise(swaps(asleep)))


def test_a_model_that_never_fits_is_refused_at_once_with_the_numbers(asleep: Mlxq) -> None:
    entry = on_demand.model(asleep.db, "alpha")
    assert entry
    huge = replace(entry.engine, name="huge.int4", memory_bytes=64 * GIB)
    values = {"name": huge.name, "model": "huge", "engine": json.dumps(asdict(huge))}
    with asleep.db.transaction():
        asleep.db.insert("models", values)
        asleep.db.announce()
    until(lambda: "huge" in states(asleep))

    refused = ask(asleep, "huge")

    asleep.db.run("DELETE FROM models WHERE name = ?", (huge.name,))
    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "model_does_not_fit"
    assert "needs 64 GB" in refused.json()["error"]["message"]
    assert asleep.events("huge.int4") == []


def test_a_model_that_is_not_to_be_kept_is_stopped_after_its_answer(asleep: Mlxq) -> None:
    assert ask(asleep, "beta", keep_alive=0).status_code == 200

    until(lambda: not asleep.engines("beta.int4"), 15)
    until(lambda: not loaded(asleep), 15)
    assert states(asleep)["beta"] == "sleeping"


def test_a_batch_has_its_sleeping_model_loaded(asleep: Mlxq) -> None:
    lines = BytesIO(file_of(line(name, model="alpha") for name in ("one", "two")))
    batch = control.create_from(asleep.db, lines)

    until(lambda: batches.get(asleep.db, batch.id).ended, 60)
    assert batches.get(asleep.db, batch.id).succeeded == 2
    assert states(asleep)["alpha"] == "serving"


def test_a_worker_that_dies_in_the_middle_of_a_load_costs_its_client_nothing(asleep: Mlxq) -> None:
    answer = asking(asleep, "alpha")
    asleep.kill_worker()
    asleep.work_with_fakes(*FAKES)

    assert answer.result().status_code == 200, answer.result().text
    assert asleep.engines("alpha.int4") == 1


def test_an_engine_that_dies_in_the_middle_of_a_load_is_started_again(asleep: Mlxq) -> None:
    answer = asking(asleep, "beta")
    process.send(asleep.identity("beta.int4"), 9)

    assert answer.result().status_code == 200, answer.result().text
    assert asleep.engines("beta.int4") == 1


def test_after_a_killed_gateway_the_same_load_goes_on(asleep: Mlxq) -> None:
    before = asleep.one("gateway")
    answer = asking(asleep, "alpha")
    process.send(asleep.identity("gateway"), 9)
    with pytest.raises(httpx.TransportError):
        answer.result()
    asleep.await_next(before)

    assert ask(asleep, "alpha").status_code == 200
    assert asleep.events("alpha.int4")[-4:].count("spawned") == 1
    assert asleep.engines("alpha.int4") == 1
    assert asleep.engines("gateway") == 1


def test_a_tier_that_may_sleep_is_woken_by_its_first_request(asleep: Mlxq) -> None:
    settings.write(asleep.home, "tier-idle-stop", {"standard": "1s"})
    until(lambda: not asleep.engines("standard"), 20)
    until(lambda: states(asleep)["standard"] == "sleeping", 10)

    assert ask(asleep, "standard").status_code == 200
    settings.reset(asleep.home, "tier-idle-stop")
