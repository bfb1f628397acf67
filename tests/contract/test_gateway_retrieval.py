"""Embeddings and ranking through the gateway, from real engines with small models, as the clients' libraries ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from support import loopback, retrieval, tiny_encoder
from support.batching import batching, file_of, line
from support.gateway import MASTER, Gateway, Upstream, until
from support.retrieval import KEY, REFERENCE, vector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serve small XLM-R models as bge-m3 and its reranker, beside a stand-in for chats."""
    root, upstream = tmp_path_factory.mktemp("retrieval"), Upstream("standard")
    makes = tiny_encoder.make(root / "makes", "xlm-roberta", scores=False)
    ranks = tiny_encoder.make(root / "ranks", "xlm-roberta", scores=True)
    engines = [
        retrieval.entry("embedding", makes, "bge-m3", context=64),
        retrieval.entry("rerank", ranks, "bge-reranker-v2-m3", context=64),
    ]
    made = Gateway(
        home=root,
        tiers=[upstream.tier()],
        secrets={"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": KEY},
        retrieval=engines,
    )
    with ExitStack() as running:
        for engine in engines:
            running.enter_context(retrieval.running(engine, root))
        upstream.start()
        running.callback(upstream.kill)
        made.start()
        running.callback(made.stop)
        yield made


@pytest.fixture(scope="module")
def client(front: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{front.url}/v1", api_key=MASTER, max_retries=0)


def post(front: Gateway, path: str, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {MASTER}"}
    return loopback.post(f"{front.url}/v1/{path}", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("model", ["embedding", "bge-m3", "BAAI/bge-m3", "text-embedding-3-small"])
def test_every_name_leads_to_the_same_vectors(client: openai.OpenAI, model: str):
    """OpenAI's library asks for base64 by itself."""
    texts: list[str] = REFERENCE["small_texts"]
    answer = client.embeddings.create(model=model, input=texts)
    wanted = [vector(text) for text in REFERENCE["cls"]["xlm-roberta"]]
    assert min(float(a @ b.embedding) for a, b in zip(wanted, answer.data, strict=True)) >= 0.999
    assert (answer.model, answer.usage.prompt_tokens > len(texts)) == (model, True)


def test_a_batch_of_texts_has_the_same_vectors(front: Gateway, client: openai.OpenAI):
    home = batching(front)
    endpoint, body = "/v1/embeddings", {"model": "embedding", "input": "a cat sleeps", "encoding_format": "float"}
    wrong = {**body, "input": "cat " * 80}
    lines = [line("cat", url=endpoint, body=body), line("long", url=endpoint, body=wrong)]
    batch = home.answered(file_of(lines), endpoint=endpoint)
    (answer,), (error,) = home.results(batch)
    alone = client.embeddings.create(model="embedding", input="a cat sleeps", encoding_format="float").data[0]
    assert answer["response"]["body"]["data"][0]["embedding"] == pytest.approx(alone.embedding, abs=1e-6)
    assert (error["custom_id"], error["response"]["body"]["error"]["code"]) == ("long", "input_too_long")
    home.db.close()


def test_floats_are_given_where_they_are_asked_for(client: openai.OpenAI):
    one = client.embeddings.create(model="embedding", input="a cat sleeps", encoding_format="float").data[0]
    other = client.embeddings.create(model="embedding", input="a cat sleeps", encoding_format="base64").data[0]
    assert vector(str(other.embedding)).tolist() == pytest.approx(one.embedding, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": [1, 2]}, "token numbers"),
        ({"input": [[1, 2], [3]]}, "token numbers"),
        ({"input": []}, "must not be empty"),
        ({"input": ["a", ""]}, r"`input\[1\]` must not be empty"),
        ({"input": ["a"] * 2049}, "at most 2,048 texts"),
        ({"input": "a", "dimensions": 64}, "may be 1024 alone"),
        ({"input": "cat " * 80}, "Input 0 has 82 tokens, and the model reads at most 64"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(client: openai.OpenAI, body: dict[str, Any], message: str):
    with pytest.raises(openai.BadRequestError, match=message):
        client.embeddings.create(**({"model": "embedding", "encoding_format": "float"} | body))


def test_a_tier_makes_no_embeddings_and_the_list_says_who_does(front: Gateway, client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="ask for 'embedding'"):
        client.embeddings.create(model="standard", input="x")
    assert {"embedding", "rerank", "standard"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("text-embedding-3-small").id == "text-embedding-3-small"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="embedding", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize("shape", [str, lambda text: {"text": text}], ids=["texts", "objects"])
def test_documents_are_ranked_in_the_shape_of_cohere_and_jina(front: Gateway, shape: Any):
    texts, scores = REFERENCE["small_texts"], REFERENCE["scores"]["xlm-roberta"]
    body = {"model": "rerank", "query": REFERENCE["query"], "documents": [shape(text) for text in texts]}
    answer = post(front, "rerank", **body, top_n=2, return_documents=True)
    assert answer.headers["x-mlxq-tier"] == "rerank"
    results = answer.json()["results"]
    best = sorted(range(3), key=lambda index: -scores[index])[:2]
    assert [(row["index"], row["document"]["text"]) for row in results] == [(at, texts[at]) for at in best]
    assert [row["relevance_score"] for row in results] == pytest.approx([scores[at] for at in best], abs=1e-4)
    assert post(front, "rerank", **body | {"documents": [{"url": "x"}]}).status_code == 400
    assert post(front, "rerank", **body | {"documents": []}).status_code == 400


def test_chats_are_answered_beside_a_batch(front: Gateway):
    until(lambda: front.ask("say ready").is_success)
    with httpx.stream(
        "POST",
        f"{front.url}/v1/embeddings",
        json={"model": "embedding", "input": ["the mac runs a server"] * 2048},
        headers={"authorization": f"Bearer {MASTER}"},
        timeout=120,
    ) as batch:
        assert front.ask("say hello").is_success
        assert len(httpx.Response(200, content=batch.read()).json()["data"]) == 2048
