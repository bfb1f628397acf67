"""The official clients upload, create, list, cancel and download; a real gateway and the job's own code answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest
from support import loopback
from support.batching import Batching, batching, file_of, line
from support.gateway import Gateway
from support.mlxq_home import until
from support.scripted import ScriptedEngine, script

from state.batches import batches


@pytest.fixture(scope="module")
def home(front: Gateway) -> Iterator[Batching]:
    made = batching(front)
    yield made
    made.db.close()


@pytest.fixture(scope="module")
def client(home: Batching) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{home.gateway.url}/v1", api_key=home.key("app"), max_retries=0)


def test_a_batch_of_openais_client_from_upload_to_output(
    home: Batching, client: openai.OpenAI, engines: dict[str, ScriptedEngine]
) -> None:
    content = file_of(
        [
            line("one", script(text="first")),
            line("two", script(text="second")),
            line("bad", "hello", body={"model": "standard", "messages": "none"}),
        ]
    )
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(content), "lines.jsonl", "batch", "processed")
    assert client.files.content(file.id).read() == content
    assert [entry.id for entry in client.files.list(purpose="batch")] == [file.id]

    created = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"run": "7"}
    )
    assert (created.status, created.metadata, created.output_file_id) == ("validating", {"run": "7"}, None)
    home.work()

    batch = client.batches.retrieve(created.id)
    assert batch.status == "completed"
    assert batch.request_counts
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.output_file_id
    assert batch.error_file_id
    answers = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    texts = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in answers}
    assert texts == {"one": "first", "two": "second"}
    assert {row["response"]["status_code"] for row in answers} == {200}
    (error,) = [json.loads(text) for text in client.files.content(batch.error_file_id).text.splitlines()]
    assert (error["custom_id"], error["response"]["status_code"], error["error"]) == ("bad", 400, None)
    assert [entry.id for entry in client.batches.list(limit=1)][:1] == [batch.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_of_anthropics_client_from_creation_to_results(
    home: Batching, engines: dict[str, ScriptedEngine]
) -> None:
    asked = anthropic.Anthropic(base_url=home.gateway.url, api_key=home.key("claude"), max_retries=0)

    def params(text: str, model: str = "fast") -> anthropic.types.message_create_params.MessageCreateParamsNonStreaming:
        return {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": text}]}

    created = asked.messages.batches.create(
        requests=[
            {"custom_id": "one", "params": params(script(text="first"))},
            {"custom_id": "other", "params": params("hello", model="no-such-model")},
        ]
    )
    assert (created.processing_status, created.request_counts.processing) == ("in_progress", 2)
    with pytest.raises(anthropic.AnthropicError):
        asked.messages.batches.results(created.id)
    home.work()

    batch = asked.messages.batches.retrieve(created.id)
    assert batch.processing_status == "ended"
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    results = {row.custom_id: row.result for row in asked.messages.batches.results(batch.id)}
    assert results["one"].type == "succeeded"
    assert results["one"].message.content[0].to_dict() == {"type": "text", "text": "first"}
    assert results["other"].type == "errored"
    assert results["other"].error.error.type == "not_found_error"
    assert [row.id for row in asked.messages.batches.list()] == [batch.id]
    assert asked.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        asked.messages.batches.retrieve(batch.id)


def test_what_belongs_to_another_key_does_not_exist(home: Batching, client: openai.OpenAI) -> None:
    other = openai.OpenAI(base_url=f"{home.gateway.url}/v1", api_key=home.key("other"), max_retries=0)
    file = client.files.create(file=("lines.jsonl", file_of([line("one")])), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for refused in (
        lambda: other.files.retrieve(file.id),
        lambda: other.files.content(file.id),
        lambda: other.files.delete(file.id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            refused()
    assert list(other.files.list()) == []
    assert list(other.batches.list()) == []

    assert client.batches.cancel(batch.id).status == "cancelling"
    home.work()
    ended = client.batches.retrieve(batch.id)
    assert (ended.status, ended.output_file_id) == ("cancelled", None)
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_batch_that_is_cancelled_in_the_middle_keeps_what_was_answered(
    home: Batching, client: openai.OpenAI, engines: dict[str, ScriptedEngine]
) -> None:
    """Its lines on their way are given up, so that the engine is free."""
    lines = [line("quick", script(text="first")), *(line(f"slow {n}", script(wait_s=60)) for n in range(3))]
    batch = home.batch(file_of(lines), owner="app")

    def cancel() -> None:
        until(lambda: home.lines(batch.output_file) and engines["standard"].active()["waiting"])
        client.batches.cancel(batch.id)

    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(cancel)
        home.work()
        cancelling.result()
    output, errors = home.results(batches.get(home.db, batch.id))
    assert client.batches.retrieve(batch.id).status == "cancelled"
    assert [row["custom_id"] for row in output] == ["quick"]
    assert {row["custom_id"]: row["error"]["code"] for row in errors} == {
        f"slow {n}": "batch_cancelled" for n in range(3)
    }
    until(lambda: engines["standard"].busy() == 0, 30)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"input": script(text="first")}),
        ("/v1/completions", {"prompt": script(text="first")}),
    ],
)
def test_each_endpoint_is_answered_in_its_own_shape(home: Batching, endpoint: str, body: dict[str, str]) -> None:
    lines = [
        line("one", url=endpoint, body={"model": "standard", **body}),
        line("no", url=endpoint, body={"model": "standard"}),
    ]
    batch = home.answered(file_of(lines), endpoint=endpoint)
    (answer,), (error,) = home.results(batch)
    content = answer["response"]["body"]
    text = content["output"][0]["content"][0]["text"] if "output" in content else content["choices"][0]["text"]
    assert (answer["custom_id"], text) == ("one", "first")
    assert (error["custom_id"], error["response"]["status_code"]) == ("no", 400)


def test_uploads_that_are_refused_leave_nothing(home: Batching, client: openai.OpenAI) -> None:
    before = set(home.home.files.iterdir())
    for content, purpose in ((b"{}", "fine-tune"), (b"x" * 200_000_001, "batch")):
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=("lines.jsonl", content), purpose=purpose)
        assert refused.value.status_code == (400 if purpose != "batch" else 413)
    cut = loopback.post(
        f"{home.gateway.url}/v1/files",
        content=b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n{"custom',
        headers={"Authorization": f"Bearer {client.api_key}", "Content-Type": "multipart/form-data; boundary=b"},
    )
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "invalid_form")
    assert set(home.home.files.iterdir()) == before


def test_a_line_asks_in_its_owners_name_and_no_more(home: Batching, engines: dict[str, ScriptedEngine]) -> None:
    """Its tiers hold; its limit of requests a minute does not: lines run in spare time. A revoked key answers none."""
    home.key("narrow", tiers=("fast",), rpm=1)
    batch = home.answered(file_of(line(str(n), model="fast") for n in range(5)), owner="narrow")
    assert (batch.succeeded, batch.errored) == (5, 0)
    other = home.answered(file_of([line("one", model="standard")]), owner="narrow")
    assert [error["code"] for error in other.errors] == ["model_not_found"]
    revoked = home.answered(file_of([line("one", model="fast")]), owner="gone")
    assert home.results(revoked)[1][0]["response"]["status_code"] == 401
    assert batches.get(home.db, revoked.id).status == "completed"
