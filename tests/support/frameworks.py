"""What agents' frameworks do, run by a Python that has them: `python frameworks.py URL KEY`.

Prints one JSON object: the name of each function here -> what it returns, or {"error": …}. The tests that read it are
in tests/contract/test_clients_frameworks.py; the frameworks are none of mlxq's dependencies.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL, KEY = sys.argv[1:3]
SCHEMA = '{"name": "Ada", "age": 36}'


def order(**given: Any) -> str:
    return f"script {json.dumps(given)}"


WEATHER = order(tool="weather", arguments={"city": "Oslo"}, text="It is cold.")


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"{city}: snow"


def _langchain_openai(**more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="standard", base_url=f"{URL}/v1", api_key=KEY, max_retries=0, **more)


def _langchain_anthropic(**more: Any) -> Any:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model="standard", base_url=URL, api_key=KEY, max_retries=0, max_tokens=4000, **more)


def _tool_loop(model: Any) -> Any:
    """Ask, run the tool, tell its result; return the arguments, and what is said then."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    bound = model.bind_tools([tool(weather)])
    asked: list[Any] = [HumanMessage(WEATHER)]
    called = bound.invoke(asked)
    (call,) = called.tool_calls
    asked += [called, ToolMessage(weather(**call["args"]), tool_call_id=call["id"])]
    return {"arguments": call["args"], "then": bound.invoke(asked).text}


def langchain_openai_answers() -> Any:
    model = _langchain_openai(max_tokens=3)
    return [model.invoke(order(text="a b c")).text, "".join(piece.text for piece in model.stream(order(text="a b c")))]


def langchain_openai_tools() -> Any:
    return _tool_loop(_langchain_openai())


def langchain_openai_responses() -> Any:
    model = _langchain_openai(use_responses_api=True)
    streamed = "".join(piece.text for piece in model.stream(order(text="a b c")))
    return [streamed, _tool_loop(model)]


def langchain_openai_schema() -> Any:
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    return _langchain_openai().with_structured_output(Person).invoke(order(text=SCHEMA)).model_dump()


def langchain_anthropic_answers() -> Any:
    model = _langchain_anthropic()
    return [model.invoke(order(text="a b c")).text, "".join(piece.text for piece in model.stream(order(text="a b c")))]


def langchain_anthropic_thinks() -> Any:
    model = _langchain_anthropic(thinking={"type": "enabled", "budget_tokens": 1024})
    said = model.invoke(order(text="four", thinking="two and two"))
    return [said.text, [block["type"] for block in said.content if isinstance(block, dict)]]


def langchain_anthropic_tools() -> Any:
    return _tool_loop(_langchain_anthropic())


def _agent(model: Any, text: str = WEATHER) -> Any:
    from pydantic_ai import Agent

    agent = Agent(model, model_settings={"max_tokens": 300})
    agent.tool_plain(weather)
    return agent.run_sync(text).output


def _openai_provider() -> Any:
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)


def pydantic_ai_chat() -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel

    return _agent(OpenAIChatModel("standard", provider=_openai_provider()))


def pydantic_ai_responses() -> Any:
    from pydantic_ai.models.openai import OpenAIResponsesModel

    return _agent(OpenAIResponsesModel("standard", provider=_openai_provider()))


def pydantic_ai_anthropic() -> Any:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    return _agent(AnthropicModel("standard", provider=AnthropicProvider(base_url=URL, api_key=KEY)))


def _instructor(mode: str, text: str) -> Any:
    import instructor
    import openai
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=instructor.Mode[mode])
    asked: Any = [{"role": "user", "content": text}]
    return client.create(model="standard", messages=asked, response_model=Person, max_retries=0).model_dump()


def instructor_json_schema() -> Any:
    return _instructor("JSON_SCHEMA", order(text=SCHEMA))


def instructor_tools() -> Any:
    return _instructor("TOOLS", order(tool="Person", arguments=json.loads(SCHEMA)))


def result(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as problem:  # noqa: BLE001 - whatever a framework raises is what the test has to show
        return {"error": repr(problem), "where": traceback.format_exc()[-1500:]}


FAMILIES = {"langchain", "pydantic", "instructor"}

if __name__ == "__main__":
    made = {name: function for name, function in globals().items() if name.partition("_")[0] in FAMILIES}
    print(json.dumps({name: result(function) for name, function in made.items()}))
