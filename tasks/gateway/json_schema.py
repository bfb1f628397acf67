"""json_schema where there is no Metal: vllm-mlx 0.6.0 would fail, and take every other answer of its batch along.

There the engine is asked for json_object, the schema goes into the prompt, and the answer is checked.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

_ORDER = "Answer with one JSON value and nothing else. It must match this JSON schema: "


def wanted(body: dict[str, Any]) -> dict[str, Any] | None:
    """Give the schema that a request asks its answer to match, if it does."""
    form = body.get("response_format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":  # pyright: ignore[reportUnknownMemberType] - a client's JSON
        return None
    named: Any = form.get("json_schema")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - a client's JSON
    return (named.get("schema") or {}) if isinstance(named, dict) else {}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def faulty(schema: dict[str, Any]) -> str | None:
    """Tell what is wrong with a schema itself."""
    try:
        validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as problem:
        return problem.message
    return None


def ask(body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Give the request that asks for the same without constrained decoding by schema."""
    order = _ORDER + orjson.dumps(schema).decode()
    messages = list(body.get("messages") or [])
    if messages and messages[0].get("role") == "system" and isinstance(messages[0].get("content"), str):
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{order}"}
    else:
        messages.insert(0, {"role": "system", "content": order})
    return {**body, "messages": messages, "response_format": {"type": "json_object"}}


def mismatch(text: str, schema: dict[str, Any]) -> str | None:
    """Tell where an answer departs from the schema; None when it matches."""
    try:
        answer: Any = orjson.loads(text)
        # An empty registry: the default one would fetch remote references.
        checker: Validator = validator_for(schema)(schema, registry=Registry())  # pyright: ignore[reportUnknownVariableType] - jsonschema's generics
        checker.validate(answer)
    except orjson.JSONDecodeError as problem:
        return f"no JSON: {problem}"
    except jsonschema.ValidationError as problem:
        return f"{problem.json_path}: {problem.message[:200]}"
    except Unresolvable as problem:
        return f"the schema refers to {problem.ref}, which is not in it"
    return None
