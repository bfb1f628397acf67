"""The official openai and anthropic clients through the real gateway, over scripted engines."""

from __future__ import annotations

import json
import time
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from support import loopback, responses_events
from support.gateway import Gateway
from support.scripted import ScriptedEngine, script

Engines = dict[str, ScriptedEngine]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
RESPONSES_TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
CLAUDE_TOOL: Any = {"name": "weather", "input_schema": PARAMETERS}
CALL = script(tool="weather", arguments={"city": "Oslo"}, text="It is cold.")
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(front: Gateway, engines: Engines) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{front.url}/v1",
        api_key=front.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.client(),
    )


@pytest.fixture
def claude(front: Gateway, engines: Engines) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=front.url,
        api_key=front.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.anthropic_client(),
    )


def body(engine: ScriptedEngine) -> dict[str, Any]:
    return engine.seen()[-1]["body"]


# Chat


def test_chat_answers_with_thoughts_usage_and_a_reason(client: openai.OpenAI):
    answer = client.chat.completions.create(model="standard", messages=user(script(text="a b c", thinking="hm hm")))
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("a b c", "stop")
    assert choice.message.model_dump()["reasoning_content"] == "hm hm"
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 5)


def test_chat_streams_and_tells_usage_only_when_asked(client: openai.OpenAI):
    asked: Any = {"model": "standard", "messages": user(script(text="a b c", thinking="hm")), "stream": True}
    chunks = list(client.chat.completions.create(**asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a b c"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert not [chunk for chunk in chunks if chunk.usage]

    told = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert [chunk.usage.completion_tokens for chunk in told if chunk.usage] == [4]
    assert told[-1].choices == []


def test_chat_runs_the_tool_loop(client: openai.OpenAI):
    asked: Any = {"model": "standard", "tools": [CHAT_TOOL]}
    message = client.chat.completions.create(**asked, messages=user(CALL)).choices[0].message
    (call,) = message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "snow"}
    turns = [*user(CALL), message.model_dump(exclude_none=True), result]
    assert client.chat.completions.create(**asked, messages=turns).choices[0].message.content == "It is cold."


def test_chat_streams_a_tool_call(client: openai.OpenAI):
    with client.chat.completions.stream(model="standard", messages=user(CALL), tools=[CHAT_TOOL]) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls or []] == [{"city": "Oslo"}]


class Person(pydantic.BaseModel):
    """What a schema asks for."""

    name: str
    age: int


def test_chat_parses_a_schema(client: openai.OpenAI, engines: Engines):
    order = script(text='{"name": "Ada", "age": 36}')
    answer = client.chat.completions.parse(model="standard", messages=user(order), response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    assert body(engines["standard"])["response_format"]["type"] == "json_schema"


def test_a_cut_schema_answer_is_the_clients_length_error(client: openai.OpenAI):
    """As OpenAI does it: 200 and `length`; a 400 would say that the caller is at fault."""
    order = script(text='{"name": "A', finish="length")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="standard", messages=user(order), response_format=Person)


def test_max_completion_tokens_reaches_the_engine_under_the_name_that_it_reads(client: openai.OpenAI, engines: Engines):
    client.chat.completions.create(model="standard", messages=user("hi"), max_completion_tokens=2)
    assert body(engines["standard"])["max_tokens"] == 2


def test_completions_answer_and_stream(client: openai.OpenAI):
    whole = client.completions.create(model="standard", prompt=script(text="a b c"))
    streamed = client.completions.create(model="standard", prompt=script(text="a b c"), stream=True)
    assert whole.choices[0].text == "a b c" == "".join(chunk.choices[0].text for chunk in streamed)


# Responses


def test_responses_answer_with_usage(client: openai.OpenAI):
    answer = client.responses.create(model="standard", input=script(text="a b c"), max_output_tokens=5)
    assert answer.output_text == "a b c"
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)
    assert answer.usage.input_tokens_details.cached_tokens == 0


def test_responses_stream_in_order(client: openai.OpenAI):
    with client.responses.stream(model="standard", input=script(text="a b c", thinking="hm")) as stream:
        events = list(stream)
        answer = stream.get_final_response()
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers)), "each event has a number of its own"
    assert answer.output_text == "a b c"
    assert answer.status == "completed"


@pytest.mark.parametrize("order", [{"text": "a b c", "thinking": "hm hm"}, {"tool": "weather", "arguments": {"a": 1}}])
def test_responses_stream_as_openais_reference_has_it(front: Gateway, engines: Engines, order: dict[str, Any]):
    body = {"model": "standard", "input": script(**order), "stream": True, "tools": [RESPONSES_TOOL]}
    response = responses_events.check(responses_events.read(front.post("/v1/responses", body).text))
    kinds = [item["type"] for item in response["output"]]
    assert kinds == (["function_call"] if "tool" in order else ["reasoning", "message"])
    assert response["usage"]["input_tokens"] == 7
    assert engines["standard"].seen()[-1]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("fault", ["reset", "error-event", "silent-end", "garbage", "garbage-within"])
@pytest.mark.usefixtures("engines")
def test_a_responses_stream_that_breaks_is_an_error(front: Gateway, fault: str):
    body = {"model": "standard", "input": script(fault=fault, after=3), "stream": True, "disable_fallbacks": True}
    events = responses_events.read(front.post("/v1/responses", body).text)
    assert "one" in str(events)
    assert events[-1]["type"] == "error"
    assert "broke off" in events[-1]["message"]


def test_what_a_model_did_before_reaches_the_engine_as_its_turns(front: Gateway, rested: Engines):
    """Thoughts as thoughts; words and calls of one turn in one message; pictures of results beside their words."""
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
    body: dict[str, Any] = {
        "model": "standard",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Is it cold?"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I look."}]},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A moment."}]},
            call,
            {**call, "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "snow"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ice"}]},
            {"role": "developer", "content": "Answer in English."},
        ],
        "tools": [RESPONSES_TOOL],
        "tool_choice": "none",
        "reasoning": {"effort": "low"},
        "max_output_tokens": 9,
    }
    answer = front.post("/v1/responses", body)
    assert answer.status_code == 200, answer.text
    asked = rested["standard"].seen()[-1]["body"]
    system, question, turn, first, second = asked["messages"]
    assert (system, question["content"]) == ({"role": "system", "content": "Be brief."}, "Is it cold?")
    assert (turn["reasoning_content"], turn["content"]) == ("I look.", "A moment.")
    assert [called["id"] for called in turn["tool_calls"]] == ["c1", "c2"]
    assert (first["content"], second["tool_call_id"]) == ("snow", "c2")
    assert second["content"].startswith("ice")
    assert "Answer in English." in second["content"]
    assert (asked["max_tokens"], asked["reasoning_effort"], asked["tool_choice"]) == (9, "low", "none")
    assert asked["tools"][0]["function"]["parameters"] == PARAMETERS
    said = answer.json()
    assert (said["instructions"], said["max_output_tokens"], said["tool_choice"]) == ("Be brief.", 9, "none")
    assert said["tools"][0]["name"] == "weather"


def test_responses_say_that_an_answer_was_cut(client: openai.OpenAI):
    answer = client.responses.create(model="standard", input=script(text="a b", finish="length"))
    assert answer.status == "incomplete"
    assert answer.incomplete_details
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_responses_run_the_tool_loop(client: openai.OpenAI):
    asked: Any = {"model": "standard", "tools": [RESPONSES_TOOL]}
    with client.responses.stream(**asked, input=user(CALL)) as stream:
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "snow"}
    turns: Any = [*user(CALL), call.model_dump(exclude={"parsed_arguments"}, exclude_none=True), result]
    assert client.responses.create(**asked, input=turns).output_text == "It is cold."


def test_responses_parse_a_schema(client: openai.OpenAI):
    order = script(text='{"name": "Ada", "age": 36}')
    assert client.responses.parse(model="standard", input=order, text_format=Person).output_parsed == Person(
        name="Ada", age=36
    )


def test_a_previous_response_is_refused_so_that_clients_send_the_history(client: openai.OpenAI, engines: Engines):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="standard", input="what is my name", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    assert engines["standard"].seen() == []


# Messages


def test_messages_answer(claude: anthropic.Anthropic):
    answer = claude.messages.create(model="claude-opus-4-5", max_tokens=99, messages=user(script(text="a b c")))
    assert [block.text for block in answer.content if block.type == "text"] == ["a b c"]
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("end_turn", 7, 3)
    assert answer.id.startswith("msg_")


ENABLED: Any = {"type": "enabled", "budget_tokens": 2000}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_messages_think(claude: anthropic.Anthropic, engines: Engines, stream: bool):
    order = script(text="four", thinking="two and two")
    asked: Any = {"model": "standard", "max_tokens": 4000, "messages": user(order), "thinking": ENABLED}
    if stream:
        with claude.messages.stream(**asked) as told:
            answer: Any = told.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert (answer.content[0].thinking, answer.content[1].text) == ("two and two", "four")
    assert not [name for name in ("fast", "longctx") if engines[name].seen()], "one tier is asked, once"


@pytest.mark.parametrize("kind", [{"type": "adaptive"}, {"type": "disabled"}])
def test_messages_take_every_kind_of_thinking(claude: anthropic.Anthropic, kind: Any):
    asked: Any = {"model": "standard", "max_tokens": 99, "messages": user(script(text="a")), "thinking": kind}
    assert claude.messages.create(**asked).stop_reason == "end_turn"


def test_messages_say_that_an_answer_was_cut(claude: anthropic.Anthropic):
    asked: Any = {"model": "standard", "max_tokens": 2, "messages": user(script(text="a b", finish="length"))}
    assert claude.messages.create(**asked).stop_reason == "max_tokens"
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_message().stop_reason == "max_tokens"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_messages_name_the_stop_sequence(claude: anthropic.Anthropic, stream: bool):
    """vllm-mlx takes no notice of stop strings, and neither does this engine."""
    asked: Any = {"model": "standard", "max_tokens": 99, "messages": user(script(text="a b STOP c d"))}
    asked["stop_sequences"] = ["never", " STOP"]
    if stream:
        with claude.messages.stream(**asked) as told:
            answer: Any = told.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ("a b", "stop_sequence", " STOP")


def test_messages_run_the_tool_loop(claude: anthropic.Anthropic):
    asked: Any = {"model": "standard", "max_tokens": 99, "tools": [CLAUDE_TOOL]}
    with claude.messages.stream(**asked, messages=user(CALL)) as stream:
        called = stream.get_final_message()
    assert called.stop_reason == "tool_use"
    (use,) = [block for block in called.content if block.type == "tool_use"]
    assert use.input == {"city": "Oslo"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "snow"}
    answered = [block.model_dump(exclude_none=True) for block in called.content]
    turns = [*user(CALL), {"role": "assistant", "content": answered}, *user("")]
    turns[-1]["content"] = [result]
    assert claude.messages.create(**asked, messages=turns).content[-1].model_dump()["text"] == "It is cold."


def test_messages_stream_in_anthropics_order(claude: anthropic.Anthropic):
    order = script(text="a b", thinking="hm")
    asked: Any = {"model": "standard", "max_tokens": 4000, "messages": user(order), "thinking": ENABLED}
    kinds = [event.type for event in claude.messages.create(**asked, stream=True)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    folded = [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]
    assert folded == ["message_start", *block, *block, "message_delta", "message_stop"]


def test_messages_count_tokens(claude: anthropic.Anthropic):
    assert claude.messages.count_tokens(model="standard", messages=user("one two three")).input_tokens == 3


def test_the_beta_client_and_prompt_caching_are_served(claude: anthropic.Anthropic):
    content: Any = [{"type": "text", "text": script(text="a"), "cache_control": {"type": "ephemeral"}}]
    asked: Any = {"model": "standard", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    assert claude.beta.messages.create(**asked).content[0].model_dump()["text"] == "a"


# What is not carried out is said, once


REFUSED = {
    "n": {"n": 2},
    "logprobs": {"logprobs": True},
    "messages[0].content[0]": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": PIXEL}]}]},
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_the_engine_cannot_do_is_refused_by_name(client: openai.OpenAI, engines: Engines, param: str):
    given = json.loads(json.dumps(REFUSED[param]).replace(json.dumps(PIXEL), json.dumps({"url": PIXEL})))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "standard", "messages": user("hi"), **given})
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")
    assert not any(engine.seen() for engine in engines.values())


def test_audio_is_refused_by_a_model_without_ears(client: openai.OpenAI, engines: Engines):
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    asked: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="standard", messages=asked)
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": "x"}, {"temperature": 5}])
def test_a_wrong_value_is_named_and_tried_on_no_tier(client: openai.OpenAI, engines: Engines, wrong: dict[str, Any]):
    ((name, _),) = wrong.items()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "standard", "messages": user("hi"), **wrong})
    assert caught.value.param == name
    assert "{" not in caught.value.message.rpartition("message")[2].partition("type")[0], "no JSON in JSON"
    assert not any(engine.seen() for engine in engines.values())


ROLES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    "/v1/responses": ({"input": [{"role": "king", "content": "hi"}]}, "input[0].role"),
    "/v1/messages": ({"messages": [{"role": "king", "content": "hi"}], "max_tokens": 9}, "messages[0].role"),
}


@pytest.mark.parametrize("path", ROLES)
def test_a_role_that_is_none_is_named(front: Gateway, engines: Engines, path: str):
    body, field = ROLES[path]
    answer = front.post(path, {"model": "standard", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(f"`{field}` must be ")
    assert error.get("param", field) == field
    assert not any(engine.seen() for engine in engines.values())


def test_a_forced_tool_call_that_did_not_come_is_no_silent_success(client: openai.OpenAI):
    asked: Any = {"model": "standard", "messages": user(script(text="no")), "tools": [CHAT_TOOL]}
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)):
        client.chat.completions.create(**asked, tool_choice="required")


WITHOUT_MODEL: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/embeddings": ({"input": "hi"}, "no_embedding_model"),
    "/v1/rerank": ({"query": "hi", "documents": ["a", "b"]}, "no_reranking_model"),
}


@pytest.mark.parametrize("path", WITHOUT_MODEL)
def test_what_no_model_here_does_is_not_tried_again(front: Gateway, rested: Engines, path: str):
    """A 5xx would have every SDK retry; nor does it rest a tier."""
    body, code = WITHOUT_MODEL[path]
    refused = front.post(path, {"model": "standard", **body})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, code)
    assert not any(engine.seen() for engine in rested.values())
    assert tier_that_answers(front) == "standard"


# Errors have the classes that the clients know


def test_an_engines_429_stays_429(client: openai.OpenAI, engines: Engines):
    for engine in engines.values():
        engine.order(status=429, headers={"retry-after": "7"})
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="standard", messages=user("hi"))
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_no_engines_words_reach_a_client(client: openai.OpenAI, engines: Engines):
    for engine in engines.values():
        engine.order(status=500, error={"detail": "/private/path: CUDA at 0xdeadbeef"})
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="standard", messages=user("hi"))
    assert "deadbeef" not in caught.value.response.text
    assert caught.value.status_code == 503


class BrokenOffError(Exception):
    """A stream told that it ends here, unfinished."""


def streamed(client: openai.OpenAI, claude: anthropic.Anthropic, dialect: str, order: str) -> None:
    """Read a stream to its end. Raises what the client raises, or BrokenOffError for an event that tells a failure."""
    asked: Any = {"model": "standard", "messages": user(order), "stream": True}
    if dialect == "chat":
        list(client.chat.completions.create(**asked))
    elif dialect == "messages":
        list(claude.messages.create(**asked, max_tokens=99))
    else:
        last = list(client.responses.create(model="standard", input=order, stream=True))[-1]
        if last.type in {"error", "response.failed"}:
            raise BrokenOffError


@pytest.mark.parametrize("fault", ["reset", "error-event", "silent-end", "garbage", "garbage-within"])
@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_a_stream_that_breaks_is_an_error_and_no_silent_end(
    client: openai.OpenAI, claude: anthropic.Anthropic, dialect: str, fault: str
):
    """After the first words there is no other tier to go to; the client has to learn that the answer is not whole."""
    with pytest.raises((openai.APIError, anthropic.APIError, BrokenOffError)):
        streamed(client, claude, dialect, script(fault=fault, after=3))


ORDERED: dict[str, Any] = {
    "/v1/chat/completions": lambda order: {"messages": user(order)},
    "/v1/completions": lambda order: {"prompt": order},
    "/v1/responses": lambda order: {"input": order},
    "/v1/messages": lambda order: {"messages": user(order), "max_tokens": 99},
}


@pytest.mark.parametrize("path", ORDERED)
def test_what_is_no_json_reaches_no_client(front: Gateway, engines: Engines, path: str):
    """It comes in pieces and a good end follows it, which would make the answer look whole."""
    body = ORDERED[path](script(fault="garbage-within", after=3))
    answer = front.post(path, {"model": "standard", "stream": True, **body})
    payloads = [line[5:].strip() for line in answer.text.splitlines() if line.startswith("data:")]
    assert "no JSON" not in answer.text
    assert all(isinstance(json.loads(payload), dict) for payload in payloads)
    assert "broke off" in payloads[-1]
    assert "one" in answer.text
    assert "four" not in answer.text, "what follows it is not sent"


def test_the_classes_of_errors(client: openai.OpenAI, claude: anthropic.Anthropic, front: Gateway):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").chat.completions.create(model="standard", messages=user("hi"))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=user("hi"))
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="standard", prompt="a cat")
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="sk-wrong").messages.create(model="standard", max_tokens=9, messages=user("hi"))
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claudius", max_tokens=9, messages=user("hi"))
    missing: Any = {"model": "standard", "messages": user("hi")}
    with pytest.raises(anthropic.BadRequestError):
        claude.post("/v1/messages", body=missing, cast_to=object)


ELSEWHERE = [
    "/v1/images/generations",
    "/v1/moderations",
    "/v1/assistants",
    "/v1/foo",
]


def tier_that_answers(front: Gateway) -> str:
    answer = front.ask(script(text="a"))
    assert answer.status_code == 200
    return answer.headers["x-mlxq-tier"]


@pytest.fixture
def rested(front: Gateway, engines: Engines) -> Engines:
    """Return engines of which none rests any more for what it did in an earlier test."""
    deadline = time.monotonic() + 60
    while tier_that_answers(front) != "standard":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for engine in engines.values():
        engine.forget()
    return engines


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_route_that_is_not_served_rests_no_tier(front: Gateway, rested: Engines, path: str):
    for _ in range(3):
        refused = front.post(path, {"model": "standard", "prompt": "hi", "input": "hi"})
        assert refused.status_code in {404, 501}
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert "litellm" not in refused.text.lower()
    assert not any(engine.seen() for engine in rested.values())
    assert tier_that_answers(front) == "standard"


def test_a_wrong_method_is_405(front: Gateway):
    headers = {"authorization": f"Bearer {front.secrets['LITELLM_MASTER_KEY']}"}
    assert loopback.get(f"{front.url}/v1/chat/completions", headers=headers).status_code == 405


# The list of models, and what else a client reads


def test_the_models_tell_their_context(client: openai.OpenAI):
    shown = {model.id: model.model_dump() for model in client.models.list()}
    assert shown["standard"]["context_length"] == 131_072
    for model in shown.values():
        assert (model.get("max_output_tokens") or 0) <= model["context_length"]


def test_a_model_that_is_none_is_openais_error(client: openai.OpenAI, claude: anthropic.Anthropic):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"
    assert "nope" in caught.value.message
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("nope")


def test_every_answer_has_a_request_id(client: openai.OpenAI, claude: anthropic.Anthropic):
    first, second = (client.chat.completions.create(model="standard", messages=user("hi"))._request_id for _ in "ab")
    assert first
    assert first != second
    assert claude.messages.create(model="standard", max_tokens=9, messages=user("hi"))._request_id


def test_a_browser_of_an_unknown_origin_gets_no_way_in(front: Gateway):
    """No origin is allowed by default: neither answers nor refusals name one."""
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    preflight = loopback.options(f"{front.url}/v1/chat/completions", headers=headers)
    key = {"authorization": f"Bearer {front.secrets['LITELLM_MASTER_KEY']}"}
    asked = {"model": "standard", "messages": user("hi")}
    answers = [
        loopback.post(f"{front.url}/v1/chat/completions", json=asked, headers=headers | more) for more in (key, {})
    ]
    assert [answer.status_code for answer in answers] == [200, 401]
    for answer in (preflight, *answers):
        assert "access-control-allow-origin" not in answer.headers
