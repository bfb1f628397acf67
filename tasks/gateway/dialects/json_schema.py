"""JSON answers where the engine does not hold an answer to a schema: the prompt asks for it, and the answer is checked.

A schema is a client's, so its check is bounded: no regular expressions, and a limit on its steps. `pattern` and
`patternProperties` reach the model and are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import orjson

ORDER = "Answer with one JSON value and nothing else. It must match this JSON schema: "
LARGEST = 64 * 1024
STEPS = 200_000
ERROR_BYTES = 32 * 2**20
"""Of all errors that are kept: those of the branches of `anyOf` until one of them matches."""
ERROR_COST = 2048
"""Bytes of one error without its message, which quotes what it is about."""
_FENCED = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_PATTERN = frozenset({"pattern"})
_OF_PATTERNS = _PATTERN | {"patternProperties", "additionalProperties", "unevaluatedProperties"}
"""What may not be checked without the regular expressions beside it."""
_BY_NAME = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names and no keywords."""


class _TooMuch(Exception):
    """A schema takes more steps than it may."""


def faulty(schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a schema itself, None when nothing is."""
    import jsonschema
    from jsonschema.validators import validator_for

    if len(orjson.dumps(schema)) > LARGEST:
        return f"it has more than {LARGEST} bytes"
    try:
        validator_for(dict(schema)).check_schema(dict(schema))
    except jsonschema.SchemaError as problem:
        return problem.message[:200]
    except RecursionError:
        return "it is nested too deeply"
    return None


def order(schema: Mapping[str, Any]) -> str:
    """Return the sentence that asks for it."""
    return ORDER + orjson.dumps(schema).decode()


def bare(text: str) -> str:
    """Return an answer without the fence of code that models like to put around JSON."""
    fenced = _FENCED.match(text)
    return fenced.group(1) if fenced else text.strip()


def mismatch(text: str, schema: Mapping[str, Any]) -> str | None:
    """Return where an answer departs from the schema; None when it matches."""
    import jsonschema
    from referencing.exceptions import Unresolvable

    try:
        _checker(_without_patterns(schema)).validate(orjson.loads(text))
    except orjson.JSONDecodeError as problem:
        return f"no JSON: {problem}"
    except jsonschema.ValidationError as problem:
        return f"{problem.json_path}: {problem.message[:200]}"
    except Unresolvable as problem:
        return f"the schema refers to {problem.ref}, which is not in it"
    except (RecursionError, _TooMuch):
        return "the schema takes too many steps to check"
    return None


def _checker(schema: Mapping[str, Any]) -> Any:
    """Return a validator that stops after STEPS steps or ERROR_BYTES of errors.

    An empty registry: the default one fetches remote references.
    """
    from jsonschema import validators
    from referencing import Registry

    validator = cast("Any", validators).validator_for(dict(schema))
    extend = cast("Any", validators).extend
    steps, room = STEPS, ERROR_BYTES

    def counted(check: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
        def step(*arguments: Any) -> Iterator[Any]:
            nonlocal steps, room
            steps -= 1
            if steps < 0:
                raise _TooMuch
            before, matches = room, True
            for error in check(*arguments) or ():
                matches = False
                room -= ERROR_COST + len(error.message)
                if room < 0:
                    raise _TooMuch
                yield error
            if matches:
                room = before

        return step

    bounded: Any = extend(validator, {name: counted(check) for name, check in validator.VALIDATORS.items()})
    return bounded(schema, registry=cast("Any", Registry)())


def _without_patterns(node: Any, *, names: bool = False) -> Any:
    """Return a schema without its regular expressions. It was parsed by pydantic, so it is not deep."""
    if isinstance(node, list):
        return [_without_patterns(inner) for inner in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    inside = cast("dict[str, Any]", node)
    omitted = frozenset[str]() if names else _OF_PATTERNS if "patternProperties" in inside else _PATTERN
    return {
        name: _without_patterns(inner, names=name in _BY_NAME and not names)
        for name, inner in inside.items()
        if name not in omitted
    }
