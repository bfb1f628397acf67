"""The shape of what an engine sends, as far as the gateway reads it: anything else is an answer that broke off."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _Call(BaseModel):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Words(BaseModel):
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Piece(_Words):
    content: str | None = None


class _Message(_Words):
    content: str | list[Any] | None = None


class _Choice(BaseModel):
    delta: _Piece | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Response(BaseModel):
    status: str | None = None
    usage: _Usage | None = None


class _Answer(_Response):
    choices: list[_Choice] | None = None
    response: _Response | None = None


_ANSWER = TypeAdapter(_Answer)


def fits(answer: object) -> bool:
    """Return whether a JSON value has the shape of an answer, or of an event of a stream, in OpenAI's dialects."""
    try:
        _ANSWER.validate_python(answer)
    except ValidationError:
        return False
    return True
