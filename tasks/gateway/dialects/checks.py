"""What is wrong with a body, in one sentence that names the field; and which valid fields are not carried out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from catalog import images
from catalog.engines import Abilities, abilities, entries
from tasks.gateway.dialects import schemas
from tasks.gateway.errors import Refusal, invalid, unsupported
from tasks.gateway.images import header, parts
from tasks.gateway.images.parts import ImagePart
from tasks.gateway.ollama import fields

MOST_VALUES = 200_000
"""In one body. An agent's long session has some 10,000. Each becomes an object of 50 to 1,000 bytes: 27 MB of empty
lists took 7 GB and the event loop for a minute."""
_SIGNS = (b'"', b"[", b"{", b",")
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
"""A string, whole or not, or a sign between values. It never fails once begun, so its time grows with the body's."""
Body = TypeVar("Body", bound=BaseModel)
_LONGEST = 200
_RULES = {
    "number_range": "hold finite numbers of at most 64 bits",
    "greater_than_equal": "be at least {ge}",
    "less_than_equal": "be at most {le}",
    "greater_than": "be more than {gt}",
    "less_than": "be less than {lt}",
    "too_short": "not be empty",
    "string_too_short": "not be empty",
    "too_long": "have at most {max_length} entries",
    "string_too_long": "have at most {max_length} characters",
    "literal_error": "be {expected}",
    "duration": 'be seconds or a time such as "5m" of at most a year, or a number below 0 for ever',
    "string_pattern_mismatch": "match {pattern}",
}
_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
}


def read(schema: type[Body], content: bytes) -> Body | Refusal:
    """Return the body as `schema` has it, or what is wrong with it (400)."""
    if overgrown(content):
        return Refusal(400, f"The body has more than {MOST_VALUES} strings and values.", "too_many_values")
    try:
        return schema.model_validate_json(content)
    except ValidationError as problem:
        return _refusal(problem, content)
    except RecursionError:
        return Refusal(400, "The body is nested too deeply.", "invalid_json")


def overgrown(content: bytes) -> bool:
    """Return whether a body holds more than MOST_VALUES strings, lists, objects and commas; long strings count once."""
    if sum(map(content.count, _SIGNS)) <= MOST_VALUES:
        return False
    return next(islice(_TOKEN.finditer(content), MOST_VALUES, None), None) is not None


def _refusal(problem: ValidationError, content: bytes) -> Refusal:
    faults = problem.errors(include_url=False, include_context=True, include_input=False)
    if faults[0]["type"] == "json_invalid":
        reason = cast("Mapping[str, Any]", faults[0].get("ctx"))["error"]
        return Refusal(400, f"The body is not valid JSON: {str(reason)[:_LONGEST]}.", "invalid_json")
    parsed = _parsed(content)
    if not isinstance(parsed, dict):
        return Refusal(400, "The body must be a JSON object that names a model.", "invalid_json")
    paths = [(_path(fault, parsed), fault) for fault in faults]
    deepest = max(len(path) for path, _ in paths)
    candidates = [(path, fault) for path, fault in paths if len(path) == deepest]
    path, fault = next((pair for pair in candidates if pair[1]["type"] == "number_range"), candidates[0])
    types = [_TYPES[other["type"]] for at, other in paths if at == path and other["type"] in _TYPES]
    return _sentence(_written(path), fault, list(dict.fromkeys(types)))


def _parsed(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:  # pydantic reads NaN and orjson does not
        return json.loads(content)


def _path(fault: ErrorDetails, parsed: Any) -> tuple[str | int, ...]:
    """Return where in the body a fault is: pydantic's location also names the kinds that it tried."""
    path: list[str | int] = []
    node = parsed
    location = fault["loc"]
    for at, step in enumerate(location):
        if isinstance(step, str) and isinstance(node, dict):
            inner = cast("dict[str, Any]", node)
            if step in inner or (at == len(location) - 1 and fault["type"] == "missing"):
                path.append(step)
                node = inner.get(step)
        elif isinstance(step, int) and isinstance(node, list) and step < len(cast("list[Any]", node)):
            path.append(step)
            node = cast("list[Any]", node)[step]
    return tuple(path)


def _written(path: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _sentence(field: str, fault: ErrorDetails, types: Sequence[str]) -> Refusal:
    kind, context = fault["type"], cast("Mapping[str, Any]", fault.get("ctx") or {})
    if kind == "missing":
        return invalid(
            f"`{field}` is missing.", field, "missing_model" if field == "model" else "missing_required_parameter"
        )
    if kind == "too_short" and field == "messages":
        return invalid("`messages` must have at least one message.", field, "empty_messages")
    if kind in _RULES:
        return invalid(f"`{field}` must {_RULES[kind].format(**context)}.", field)
    if types:
        return invalid(f"`{field}` must be {' or '.join(types)}.", field, "invalid_type")
    return invalid(f"`{field or 'body'}` is not valid.", field or None)


# What is valid and not carried out


def not_carried_out(
    body: BaseModel, tier: str, can: Abilities, *, vision: bool, thinks: bool = False
) -> Refusal | None:
    """Return why a valid request cannot be done as asked by `tier`, None when it can.

    `vision`, `thinks`: whether its model sees, and thinks.
    """
    return next(_refusals(body, tier, can, vision, thinks), None)


def carried_out_by_none(body: BaseModel, model: str, backend: str, *, vision: bool) -> Refusal | None:
    """Return why a request cannot be done as asked whichever engine serves a model, None when one may do it.

    For a model that no engine has served yet. `backend`: metal, cpu or cuda.
    """
    refusals = [
        not_carried_out(body, model, abilities(name, backend), vision=vision, thinks=True) for name in entries()
    ]
    return refusals[0] if all(refusals) else None


def _refusals(body: BaseModel, tier: str, can: Abilities, vision: bool, thinks: bool) -> Iterator[Refusal]:
    match body:
        case fields.OllamaTexts():
            yield from _of_ollama(body, tier, can, vision, thinks)
        case schemas.Chat():
            yield from _of_chat(body, tier, can, vision)
        case schemas.Completions():
            yield from _of_completions(body, can)
        case schemas.Responses():
            yield from _of_responses(body, tier, vision)
        case schemas.CountTokens():  # and Messages
            yield from _of_messages(body, tier, vision)
        case _:
            return
    if vision:
        yield from _of_images(body)


def _of_chat(body: schemas.Chat, tier: str, can: Abilities, vision: bool) -> Iterator[Refusal]:
    yield from _of_sampling(body, can)
    if body.logprobs and not can.logprobs:
        yield unsupported("logprobs", f"the engine of {tier} does not give them.")
    if "audio" in (body.modalities or ()) or body.audio is not None:
        yield unsupported("audio", "no model here speaks.")
    for name in ("functions", "function_call"):
        if getattr(body, name) is not None:
            yield unsupported(name, "use `tools` and `tool_choice`, which took its place.")
    if body.web_search_options is not None:
        yield unsupported("web_search_options", "mlxq does not search the web.")
    form = body.response_format
    if form and form.type == "json_schema" and form.json_schema is None:
        yield invalid("`response_format.json_schema` is missing.", "response_format.json_schema")
    yield from _of_chat_tools(body)
    for at, message in enumerate(body.messages):
        if isinstance(message.content, list):
            yield from _of_parts(f"messages[{at}].content", message.content, tier, vision)


def _of_chat_tools(body: schemas.Chat) -> Iterator[Refusal]:
    for at, tool in enumerate(body.tools or ()):
        if tool.type != "function" or tool.function is None:
            yield unsupported(f"tools[{at}]", "only function tools are.")
    if isinstance(body.tool_choice, schemas.NamedTool) and body.tool_choice.function is None:
        yield unsupported("tool_choice", "only auto, none, required and a named function are.")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        yield invalid("`tool_choice` needs `tools`.", "tool_choice")


def _of_sampling(body: schemas.Chat | schemas.Completions, can: Abilities) -> Iterator[Refusal]:
    if (body.n or 1) > 1:
        yield unsupported("n", "ask once for each choice.")
    if body.logit_bias and not can.logit_bias:
        yield unsupported("logit_bias", "the engine that serves this model has none.")
    if body.frequency_penalty and not can.frequency_penalty:
        yield unsupported("frequency_penalty", "use presence_penalty or repetition_penalty.")
    stops = body.stop if isinstance(body.stop, list) else []
    if sum(map(len, stops)) > schemas.STOPS * 20:
        yield invalid(f"`stop` must have at most {schemas.STOPS * 20} characters in all.", "stop")


def _of_completions(body: schemas.Completions, can: Abilities) -> Iterator[Refusal]:
    yield from _of_sampling(body, can)
    if not isinstance(body.prompt, str) and not (len(body.prompt) == 1 and isinstance(body.prompt[0], str)):
        yield unsupported("prompt", "send one string.")
    if (body.best_of or 1) > 1:
        yield unsupported("best_of", "ask once for each choice.")
    if body.logprobs is not None:
        yield unsupported("logprobs", "ask /v1/chat/completions.")
    if body.echo:
        yield unsupported("echo", "put the prompt before the answer yourself.")
    if body.suffix:
        yield unsupported("suffix", "put it into the prompt as your model wants it.")


def _of_responses(body: schemas.Responses, tier: str, vision: bool) -> Iterator[Refusal]:
    if body.previous_response_id is not None:
        reason = "mlxq keeps no answers. Send the whole conversation in `input`."
        yield Refusal(
            400, f"`previous_response_id` is not supported: {reason}", "unsupported_parameter", "previous_response_id"
        )
    for name, reason in (
        ("conversation", "mlxq keeps no conversations."),
        ("prompt", "mlxq keeps no prompts."),
        ("background", "requests are answered at once."),
    ):
        if getattr(body, name):
            yield unsupported(name, reason)
    if body.top_logprobs:
        yield unsupported("top_logprobs", "ask /v1/chat/completions for them.")
    yield from _of_response_tools(body)
    for at, item in enumerate(body.input if isinstance(body.input, list) else ()):
        if isinstance(item, schemas.Other):
            yield unsupported(f"input[{at}].type", f"mlxq has no {item.type[:60]}.")
        content = getattr(item, "content", None) if isinstance(item, schemas.Item) else getattr(item, "output", None)
        if isinstance(content, list):
            yield from _of_parts(f"input[{at}].content", cast("list[Any]", content), tier, vision)


def _of_response_tools(body: schemas.Responses) -> Iterator[Refusal]:
    form = body.text.format if body.text else None
    if form and form.type == "json_schema" and form.schema_ is None:
        yield invalid("`text.format.schema` is missing.", "text.format.schema")
    if isinstance(body.tool_choice, schemas.ResponseChoice) and body.tool_choice.type != "function":
        yield unsupported("tool_choice", "only auto, none, required and a named function are.")
    for at, tool in enumerate(body.tools or ()):
        if tool.type == "function" and not tool.name:
            yield invalid(f"`tools[{at}].name` is missing.", f"tools[{at}].name", "missing_required_parameter")


def _of_messages(body: schemas.CountTokens, tier: str, vision: bool) -> Iterator[Refusal]:
    if isinstance(body, schemas.Messages):
        if body.container:
            yield unsupported("container", "mlxq runs no code.")
        if body.mcp_servers:
            yield unsupported("mcp_servers", "mlxq asks no servers; call them as tools.")
    yield from _of_message_tools(body)
    if all(message.role == "system" for message in body.messages):
        yield invalid("`messages` must have at least one message of the user.", "messages", "empty_messages")
    for at, message in enumerate(body.messages):
        if isinstance(message.content, list):
            yield from _of_parts(f"messages[{at}].content", message.content, tier, vision)


def _of_message_tools(body: schemas.CountTokens) -> Iterator[Refusal]:
    for at, tool in enumerate(body.tools or ()):
        if tool.type not in (None, "custom"):
            yield unsupported(f"tools[{at}].type", "only tools with an `input_schema` of their own are.")
        elif tool.input_schema is None:
            yield invalid(f"`tools[{at}].input_schema` is missing.", f"tools[{at}].input_schema")
    if body.tool_choice and body.tool_choice.type in {"any", "tool"} and not body.tools:
        yield invalid("`tool_choice` needs `tools`.", "tool_choice")


def _of_ollama(body: fields.OllamaTexts, tier: str, can: Abilities, vision: bool, thinks: bool) -> Iterator[Refusal]:
    if body.think and not thinks:
        message = f"The model {body.model[:100]!r} does not support thinking."
        yield Refusal(400, message, "unsupported_parameter", "think")
    if body.logprobs:
        yield unsupported("logprobs", "ask /v1/chat/completions for them.")
    if body.options and body.options.frequency_penalty and not can.frequency_penalty:
        yield unsupported("options.frequency_penalty", "use presence_penalty or repeat_penalty.")
    if isinstance(body, fields.OllamaChat):
        pictures = [f"messages[{at}].images" for at, message in enumerate(body.messages or ()) if message.images]
    else:
        pictures = ["images"] if getattr(body, "images", None) else []
    if pictures and not vision:
        yield unsupported(pictures[0], f"{tier} does not take images.")
    for name, reason in _NOT_GENERATED.items():
        if getattr(body, name, None):
            yield unsupported(name, reason)


_NOT_GENERATED = {
    "suffix": "put it into the prompt as your model wants it.",
    "template": "a tier's model has its own.",
    "context": "send the conversation to /api/chat.",
    "raw": "send a prompt without a template to /v1/completions.",
}
"""Fields of /api/generate, and what to do instead."""


def _of_parts(field: str, content: Sequence[Any], tier: str, vision: bool) -> Iterator[Refusal]:
    for at, part in enumerate(content):
        name = f"{field}[{at}]"
        match part:
            case schemas.Other():
                yield unsupported(name, f"{tier} does not take {part.type[:60]!r} parts.")
            case schemas.Image() | schemas.ResponseImage() | schemas.Picture():
                if not vision:
                    yield unsupported(name, f"{tier} does not take images.")
            case schemas.ToolResult(content=list()):
                yield from _of_parts(f"{name}.content", cast("list[Any]", part.content), tier, vision)
            case _:
                pass


def _of_images(body: schemas.Fields) -> Iterator[Refusal]:
    """Check what the images of a request are, by their first bytes."""
    images_of_body = parts.of(body)
    if len(images_of_body) > images.MOST:
        field = images_of_body[images.MOST].field
        message = f"`{field}` is one too many: a request may hold {images.MOST} images."
        yield invalid(message, field)
    for image in images_of_body:
        yield from _of_image(image)


def _of_image(image: ImagePart) -> Iterator[Refusal]:
    field = image.field
    if not image.url.startswith("data:"):
        yield _link(field)
    head = header.of_url(image.url)
    if head is None:
        message = f"`{field}` must be a PNG, JPEG, GIF or WebP image in base64."
        yield invalid(message, field, "invalid_image")
    elif head.pixels > images.MOST_PIXELS:
        size = images.MOST_PIXELS
        message = f"`{field}` has {head.width:,} x {head.height:,} pixels, and {size:,} are the most."
        yield invalid(message, field, "image_too_large")


def _link(field: str) -> Refusal:
    message = (
        f"`{field}` must hold the image itself, as data: mlxq follows links to images only over https, and after "
        "mlxq config set allow-remote-images true"
    )
    return Refusal(400, message, "link_not_followed", field)
