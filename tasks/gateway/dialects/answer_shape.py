"""The shape of what an engine sends, as far as the gateway reads it: anything else is an answer that broke off."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError


class _FunctionShape(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _CallShape(BaseModel):
    index: int | None = None
    id: str | None = None
    function: _FunctionShape | None = None


class _WordsShape(BaseModel):
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallShape] | None = None


class _PieceShape(_WordsShape):
    content: str | None = None


class _MessageShape(_WordsShape):
    content: str | list[Any] | None = None


class _ChoiceShape(BaseModel):
    delta: _PieceShape | None = None
    message: _MessageShape | None = None
    text: str | None = None
    finish_reason: str | None = None


class _DetailsShape(BaseModel):
    cached_tokens: int | None = None


class _UsageShape(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _DetailsShape | None = None
    input_tokens_details: _DetailsShape | None = None


class _ResponseShape(BaseModel):
    status: str | None = None
    usage: _UsageShape | None = None


class _AnswerShape(_ResponseShape):
    choices: list[_ChoiceShape] | None = None
    response: _ResponseShape | None = None


_ANSWER = TypeAdapter(_AnswerShape)


def fits(answer: object) -> bool:
    """Return whether a JSON value has the shape of an answer, or of an event of a stream, in OpenAI's dialects."""
    try:
        _ANSWER.validate_python(answer)
    except ValidationError:
        return False
    return True
