"""The engine for embeddings and ranking: its numbers are those of transformers and torch, and it shares its time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import loopback, outbound, retrieval, tiny_encoder
from support.retrieval import KEY, REFERENCE, RetrievalEngine, vector

from state.stack import Purpose
from tasks.plan.health import read_status
from tasks.supervision import probe
from tasks.weights import builtin_embedding
from tasks.weights.formats import headers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEAST_COSINE = 0.999


@pytest.fixture(scope="module")
def weights(shared_folder: Path) -> Path:
    return builtin_embedding.ensure(shared_folder)


@pytest.fixture(scope="module")
def engine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RetrievalEngine]:
    served = retrieval.entry("embedding", weights, "all-minilm-l6-v2")
    with retrieval.running(served, tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RetrievalEngine]:
    """Serve a model of which 2,048 texts take seconds on a CPU."""
    folder = tiny_encoder.make(tmp_path_factory.mktemp("small") / "model", "bert", scores=False)
    served = retrieval.entry("embedding", folder, "all-minilm-l6-v2", context=64)
    with retrieval.running(served, tmp_path_factory.mktemp("small-home")) as made:
        yield made


def test_the_wheel_holds_the_model_whole(weights: Path):
    inventory = headers.inventory(weights)
    assert (inventory.model_type, inventory.parameters, inventory.context) == ("bert", 22_713_728, 512)
    assert builtin_embedding.ensure(weights.parent) == weights


def test_its_vectors_are_those_of_the_reference(engine: RetrievalEngine):
    """In one batch, so that the short ones are padded beside the long one."""
    answer = engine.post("/v1/embeddings", model="embedding", input=REFERENCE["texts"]).json()
    cosines = [
        float(vector(wanted) @ row["embedding"])
        for wanted, row in zip(REFERENCE["minilm"], answer["data"], strict=True)
    ]
    assert min(cosines) >= LEAST_COSINE
    assert [row["index"] for row in answer["data"]] == list(range(len(REFERENCE["texts"])))
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > len(REFERENCE["texts"]) * 3


def test_base64_holds_the_same_numbers(engine: RetrievalEngine):
    body = {"model": "embedding", "input": REFERENCE["texts"][:2]}
    plain = engine.post("/v1/embeddings", **body).json()["data"]
    coded = engine.post("/v1/embeddings", **body, encoding_format="base64").json()["data"]
    for one, other in zip(coded, plain, strict=True):
        assert vector(one["embedding"]).tolist() == pytest.approx(other["embedding"], abs=1e-6)


def test_fewer_dimensions_are_the_first_ones_at_length_one(engine: RetrievalEngine):
    body = {"model": "embedding", "input": REFERENCE["texts"][:1]}
    whole = engine.post("/v1/embeddings", **body).json()["data"][0]["embedding"]
    cut = engine.post("/v1/embeddings", **body, dimensions=64).json()["data"][0]["embedding"]
    length = sum(value**2 for value in whole[:64]) ** 0.5
    assert cut == pytest.approx([value / length for value in whole[:64]], abs=1e-6)


def test_a_text_that_is_too_long_is_refused_with_its_number(engine: RetrievalEngine):
    answer = engine.post("/v1/embeddings", model="embedding", input=["short", "word " * 300])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Input 1 has 302 tokens, and the model reads at most 256."


def test_it_is_locked_and_says_how_it_is(engine: RetrievalEngine):
    assert loopback.get(f"{engine.url}/v1/models").status_code == 401
    assert probe.models(engine.port, KEY, 10) == {"embedding"}
    assert probe.one_answer(engine.port, KEY, "embedding", 60, release="mlx-embeddings 0.1.0") < 60
    status = read_status(engine.client.get("/v1/status").json())
    assert (status.loaded, status.num_running, status.num_waiting) == (True, 0, 0)
    assert status.steps_executed > 0
    assert engine.client.delete("/v1/cache").status_code == 200


def test_a_short_request_does_not_wait_for_a_large_batch(small: RetrievalEngine):
    engine, text = small, "the mac runs a server on a model"
    ends: dict[str, float] = {}

    def batch() -> None:
        with httpx.Client(headers=engine.client.headers, timeout=300) as client:
            answer = client.post(f"{engine.url}/v1/embeddings", json={"model": "embedding", "input": [text] * 2048})
        assert len(answer.json()["data"]) == 2048
        ends["batch"] = time.monotonic()

    thread = threading.Thread(target=batch)
    before = read_status(engine.client.get("/v1/status").json()).steps_executed
    thread.start()
    while read_status(engine.client.get("/v1/status").json()).steps_executed == before:
        assert thread.is_alive()
    engine.post("/v1/embeddings", model="embedding", input=["Hi"])
    ends["short"] = time.monotonic()
    thread.join()
    assert ends["short"] < ends["batch"]


def test_a_client_that_leaves_takes_the_rest_of_its_batch_along(small: RetrievalEngine):
    engine, text = small, "the mac runs a server on a model"
    limits = httpx.Timeout(60, read=0.5)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(headers=engine.client.headers, timeout=limits) as client:
        client.post(f"{engine.url}/v1/embeddings", json={"model": "embedding", "input": [text] * 8192})
    deadline = time.monotonic() + 30
    while (status := read_status(engine.client.get("/v1/status").json())).num_waiting:
        assert time.monotonic() < deadline
    assert status.num_running == 0


@pytest.mark.parametrize("kind", list(tiny_encoder.SPECIAL))
@pytest.mark.parametrize("purpose", ["embedding", "rerank"])
def test_small_models_of_the_real_classes_are_computed_rightly(kind: str, purpose: Purpose, tmp_path: Path):
    """bge-m3 is an XLM-R whose vector is its first token's; bge-reranker-v2-m3 one with a head, ms-marco's are BERT."""
    folder = tiny_encoder.make(tmp_path / "model", kind, scores=purpose == "rerank")
    served = retrieval.entry(purpose, folder, "bge-m3" if purpose == "embedding" else "bge-reranker-v2-m3", context=64)
    texts: list[str] = REFERENCE["small_texts"]
    with retrieval.running(served, tmp_path) as engine:
        if purpose == "embedding":
            rows = engine.post("/v1/embeddings", model="embedding", input=texts).json()["data"]
            wanted = [vector(text) for text in REFERENCE["cls"][kind]]
            assert min(float(a @ b["embedding"]) for a, b in zip(wanted, rows, strict=True)) >= LEAST_COSINE
            return
        body = {"model": "rerank", "query": REFERENCE["query"], "documents": texts}
        results = engine.post("/v1/rerank", **body).json()["results"]
        scores: list[float] = REFERENCE["scores"][kind]
        assert [row["index"] for row in results] == sorted(range(3), key=lambda index: -scores[index])
        assert {row["index"]: row["relevance_score"] for row in results} == pytest.approx(
            dict(enumerate(scores)), abs=1e-4
        )
        best = engine.post("/v1/rerank", **body, top_n=1, return_documents=True).json()["results"]
        assert [row["document"]["text"] for row in best] == [texts[results[0]["index"]]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_it_ends_when_told_to(weights: Path, tmp_path: Path, number: signal.Signals):
    with retrieval.running(retrieval.entry("embedding", weights, "all-minilm-l6-v2"), tmp_path) as engine:
        engine.process.send_signal(number)
        assert engine.process.wait(60) in {0, -number}


def test_nothing_leaves_the_machine(weights: Path, tmp_path: Path):
    """As tests/contract/test_engine_adapters.py has it for the engines of chats."""
    if not outbound.can_be_seen():
        pytest.skip("this system allows no network namespace, or has no strace")
    served = retrieval.entry("embedding", weights, "all-minilm-l6-v2")
    url, body = f"http://127.0.0.1:{served.port}", {"model": "embedding", "input": ["Hi"]}

    assert outbound.calls(retrieval.launch(served, tmp_path), url, "/v1/embeddings", body, tmp_path, key=KEY) == []
