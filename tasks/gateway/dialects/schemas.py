"""The fields of each dialect that pass, with their types and ranges: all else is dropped before anything sees it.

Sources: the references of OpenAI (Chat, Completions, Responses, Embeddings), Anthropic (Messages) and Cohere (Rerank),
what both engines read beyond them (`top_k`, `min_p`, `repetition_penalty`, `enable_thinking`, `thinking_token_budget`,
`chat_template_kwargs`), and how long a model is to stay loaded (`keep_alive`, `ttl`). Fields without any effect on an
answer (`metadata`, `store`, `user`, `seed`, `service_tier`, `verbosity` and the like) are dropped as unknown ones are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, cast

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from tasks.plan import on_demand

LONGEST_NAME = 256
Part = TypeVar("Part")
Each = Annotated[list[Part], Field(fail_fast=True)]
"""A list that is judged up to its first fault: a million faults would take a gigabyte."""

STOPS = 5000
STOP_LENGTH = 1000
BIASES = 1024


def _of_plain_numbers(value: Part) -> Part:
    """Return a value of any shape as it is. Raises for a number in it that cannot be written again."""
    try:
        written = orjson.dumps(value)
    except TypeError as problem:
        raise _NUMBER from problem
    if b"null" in written and any(map(_is_endless, _leaves(value))):
        raise _NUMBER
    return value


def _seconds(value: Any) -> float:
    """Return the seconds of a time. Raises PydanticCustomError."""
    try:
        return on_demand.seconds(value)
    except ValueError as problem:
        raise PydanticCustomError("duration", "not a time") from problem


KeepAlive = Annotated[float, BeforeValidator(_seconds)]
"""Ollama's `keep_alive`, as seconds: how long a model stays loaded; LM Studio's `ttl` says the same in seconds."""
_NUMBER = PydanticCustomError("number_range", "a number is not finite, or takes more than 64 bits")


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += cast("dict[str, Any]", node).values()
        elif isinstance(node, list):
            waiting += cast("list[Any]", node)
        else:
            yield node


Object = Annotated[dict[str, Any], AfterValidator(_of_plain_numbers)]
"""An object of any shape."""
Values = Annotated[list[Any], AfterValidator(_of_plain_numbers)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Stops = Annotated[Each[Stop], Field(max_length=STOPS)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ToolKind = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""It is told in a header where it is left out."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Fields(BaseModel):
    """Named fields, each of its exact type; what is not named is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


# Parts of a message


class Text(Fields):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    """A picture; `url` holds the picture itself, as data:."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Image(Fields):
    """A picture in OpenAI's chat."""

    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalText(Fields):
    """What a model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class Other(Fields):
    """A part that the references know and no engine here takes."""

    type: str


def _tag(names: frozenset[str], default: str = "") -> Discriminator:
    """Return the discriminator of a part: by `type`; all other known names are one kind."""

    def kind(part: Any) -> str | None:
        name = part.get("type", default) if isinstance(part, dict) else getattr(part, "type", default)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - a client's JSON
        if not isinstance(name, str):
            return None
        return name if name in names else "other"

    return Discriminator(kind)


ChatPart = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Image, Tag("image_url")]
    | Annotated[RefusalText, Tag("refusal")]
    | Annotated[Other, Tag("other")],
    _tag(frozenset({"text", "image_url", "refusal"})),
]


class Called(Fields):
    """A function that a model called."""

    name: str
    arguments: str


class ToolCall(Fields):
    """A call in a model's earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(Fields):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Each[ChatPart] | None = None
    name: str | None = None
    tool_calls: Each[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(Fields):
    """A function that a model may call."""

    name: FunctionName
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool of a chat."""

    type: str
    function: Function | None = None


class Named(Fields):
    """The name of a function."""

    name: str


class NamedTool(Fields):
    """The one tool that has to be called."""

    type: str
    function: Named | None = None


class JsonSchema(Fields):
    """A schema, and its name."""

    name: str = "answer"
    description: str | None = None
    schema_: Annotated[Object, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Fields):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Fields):
    """What a stream says beside the words."""

    include_usage: bool = False


# Requests


class Request(Fields):
    """What every request for words has."""

    model: Name
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    disable_fallbacks: bool = False
    """mlxq's own: have the named tier answer, or none."""
    keep_alive: KeepAlive | None = None
    ttl: Count | None = None


class Sampling(Request):
    """What the engines' chat reads beyond the references; their Responses do not."""

    top_k: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None


class _Completion(Sampling):
    max_tokens: Count | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=BIASES)] | None = None
    n: Count | None = None
    stop: Stop | Stops | None = None
    stream_options: StreamOptions | None = None


class Chat(_Completion):
    """POST /v1/chat/completions."""

    messages: Annotated[Each[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: Each[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: Count | None = None
    chat_template_kwargs: Object | None = None
    modalities: Each[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None


class Completions(_Completion):
    """POST /v1/completions."""

    prompt: str | Values
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None


class Embeddings(Fields):
    """POST /v1/embeddings."""

    model: Name
    input: str | Values
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    keep_alive: KeepAlive | None = None
    ttl: Count | None = None


class Rerank(Fields):
    """POST /v1/rerank."""

    model: Name
    query: str
    documents: Values
    top_n: Count | None = None
    return_documents: bool | None = None
    keep_alive: KeepAlive | None = None
    ttl: Count | None = None


# Anthropic


class ImageSource(Fields):
    """Where a picture is."""

    type: Literal["base64", "url", "file", "text", "content"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Picture(Fields):
    """A picture in Anthropic's messages."""

    type: Literal["image"]
    source: ImageSource


class ToolReference(Fields):
    """The name of a tool that a search for tools brought up."""

    type: Literal["tool_reference"]
    tool_name: str


ResultPart = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Picture, Tag("image")]
    | Annotated[ToolReference, Tag("tool_reference")]
    | Annotated[Other, Tag("other")],
    _tag(frozenset({"text", "image", "tool_reference"})),
]


class ToolUse(Fields):
    """A call in a model's earlier answer."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: Object


class ToolResult(Fields):
    """What a tool gave back."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Each[ResultPart] | None = None
    is_error: bool | None = None


class Thinking(Fields):
    """A model's earlier thoughts."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinking(Fields):
    """Thoughts that only Anthropic can read."""

    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Picture, Tag("image")]
    | Annotated[ToolUse, Tag("tool_use")]
    | Annotated[ToolResult, Tag("tool_result")]
    | Annotated[Thinking, Tag("thinking")]
    | Annotated[RedactedThinking, Tag("redacted_thinking")]
    | Annotated[Other, Tag("other")],
    _tag(frozenset({"text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"})),
]


class AnthropicMessage(Fields):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | Each[Block]


class AnthropicTool(Fields):
    """A tool; those of Anthropic's own kinds have no schema."""

    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    input_schema: Object | None = None


class AnthropicChoice(Fields):
    """Whether, and which, tool has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingWish(Fields):
    """How much a model may think."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None


class OutputFormat(Fields):
    """The form of an answer in Anthropic's words."""

    type: Literal["json_schema"]
    schema_: Annotated[Object, Field(alias="schema")]


class OutputConfig(Fields):
    """How hard to try, and the form of an answer."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class CountTokens(Fields):
    """POST /v1/messages/count_tokens."""

    model: Name
    messages: Annotated[Each[AnthropicMessage], Field(min_length=1)]
    system: str | Each[Text] | None = None
    tools: Each[AnthropicTool] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: ThinkingWish | None = None


class Messages(CountTokens, Sampling):
    """POST /v1/messages."""

    max_tokens: Count
    stop_sequences: Stops | None = None
    temperature: Share | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    container: Any = None
    mcp_servers: Any = None


# Responses


class ResponseText(Fields):
    """Words of either side."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class ResponseImage(Fields):
    """A picture in Responses."""

    type: Literal["input_image"]
    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None


ResponsePart = Annotated[
    Annotated[ResponseText, Tag("text")]
    | Annotated[ResponseImage, Tag("input_image")]
    | Annotated[RefusalText, Tag("refusal")]
    | Annotated[Other, Tag("other")],
    Discriminator(
        lambda part: {  # pyright: ignore[reportUnknownLambdaType] - a client's JSON
            "input_text": "text",
            "output_text": "text",
            "text": "text",
            "input_image": "input_image",
            "refusal": "refusal",
        }.get(str(part.get("type") if isinstance(part, dict) else getattr(part, "type", "")), "other")  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - a client's JSON
    ),
]


class Item(Fields):
    """A message of either side."""

    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Each[ResponsePart]
    status: str | None = None


class ReasoningText(Fields):
    """Thoughts, or their summary."""

    type: str
    text: str


class Reasoning(Fields):
    """A model's earlier thoughts."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Each[ReasoningText] | None = None
    content: Each[ReasoningText] | None = None


class FunctionCall(Fields):
    """A call in a model's earlier answer."""

    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    arguments: str
    status: str | None = None


class FunctionOutput(Fields):
    """What a function gave back."""

    type: Literal["function_call_output"]
    id: str | None = None
    call_id: str
    output: str | Each[ResponsePart]
    status: str | None = None


InputItem = Annotated[
    Annotated[Item, Tag("message")]
    | Annotated[Reasoning, Tag("reasoning")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")]
    | Annotated[Other, Tag("other")],
    _tag(frozenset({"message", "reasoning", "function_call", "function_call_output"}), "message"),
]


class ResponseTool(Fields):
    """A tool; OpenAI's own kinds have no name."""

    type: ToolKind
    name: str | None = None
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class ResponseChoice(Fields):
    """The one tool that has to be called."""

    type: str
    name: str | None = None


class ResponseEffort(Fields):
    """How much a model may think."""

    effort: Effort | None = None


class TextFormat(Fields):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[Object | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Fields):
    """The form of an answer's words."""

    format: TextFormat | None = None


class Responses(Request):
    """POST /v1/responses."""

    input: str | Annotated[Each[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    tools: Each[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ResponseEffort | None = None
    text: TextConfig | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: Object | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
