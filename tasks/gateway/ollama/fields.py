"""The fields of Ollama's API that pass, with their types and ranges: all else is dropped before anything sees it.

Source: Ollama's docs/api.md and its Python client 0.6. An option that no engine here has (`num_ctx`, `mirostat`, `seed`
and the like) is ignored, as Ollama ignores those that it does not know.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.gateway.dialects.schemas import (
    Count,
    Each,
    Fields,
    Function,
    KeepAlive,
    Name,
    Object,
    Penalty,
    Share,
    Stop,
    Stops,
    Temperature,
    Values,
)

Picture64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/\s]+={0,2}\s*$")]
"""A picture in base64, without the `data:` that tells its type."""


class Options(Fields):
    """How to choose the next word, and when to stop."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_predict: Annotated[int, Field(ge=-2, le=2**31 - 1)] | None = None
    """Tokens of the answer; 0 and less for as many as the tier gives."""
    stop: Stop | Stops | None = None


class OllamaRequest(Fields):
    """What every request to a model has."""

    model: Name
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class OllamaTexts(OllamaRequest):
    """What every request for words has."""

    stream: bool = True
    format: Literal["", "json"] | Object | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None


class CalledFunction(Fields):
    """A function that a model called."""

    name: str
    arguments: Object = Field(default_factory=dict)


class OllamaCall(Fields):
    """A call in a model's earlier answer."""

    id: str | None = None
    function: CalledFunction


class OllamaMessage(Fields):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Each[Picture64] | None = None
    tool_calls: Each[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaTool(Fields):
    """A tool; Ollama has functions alone."""

    type: Literal["function"] = "function"
    function: Function


class OllamaChat(OllamaTexts):
    """POST /api/chat."""

    messages: Each[OllamaMessage] | None = None
    tools: Each[OllamaTool] | None = None


class OllamaGenerate(OllamaTexts):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    images: Each[Picture64] | None = None
    suffix: str | None = None
    template: str | None = None
    context: Values | None = None
    raw: bool | None = None


class OllamaEmbed(OllamaRequest):
    """POST /api/embed."""

    input: str | Values
    dimensions: Count | None = None
    truncate: bool | None = None


class OllamaEmbeddings(OllamaRequest):
    """POST /api/embeddings, the older of the two."""

    prompt: str


class OllamaName(Fields):
    """The model that a request is about; `name` is what older clients call it."""

    model: str | None = None
    name: str | None = None
    stream: bool = True

    @property
    def wanted(self) -> str:
        """The name, without the tag that Ollama's clients add."""
        return plain(self.model or self.name or "")


LATEST = ":latest"


def plain(name: str) -> str:
    """Return a model's name without the tag `latest`, which clients add to a name without a tag."""
    return name.removesuffix(LATEST)


def tagged(name: str) -> str:
    """Return a model's name with the tag that Ollama's lists have: its quant, or `latest`."""
    return name if ":" in name else f"{name}{LATEST}"
