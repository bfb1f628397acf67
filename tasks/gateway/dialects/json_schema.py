"""JSON answers where the engine does not hold an answer to a schema: the prompt asks for it, and the answer is checked.

A schema is a client's, so its check is bounded: no regular expressions, and a limit on its steps. `pattern`,
`patternProperties`, `unevaluatedProperties` and `unevaluatedItems` reach the model and are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import orjson

ORDER = "Answer with one JSON value and nothing else. It must match this JSON schema: "
LARGEST = 64 * 1024
STEPS = 100_000
ERROR_BYTES = 32 * 2**20
"""Of all errors that are kept: those of the branches of `anyOf` until one of them matches."""
ERROR_COST = 2048
"""Bytes of one error without its message, which quotes what it is about."""
_FENCED = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_DRAFTS = ("3", "4", "6", "7", "201909", "202012")
_UNCHECKED = frozenset({"pattern", "unevaluatedProperties", "unevaluatedItems"})
"""Regular expressions, and what jsonschema follows through references without a step that can be counted."""
_OF_PATTERNS = _UNCHECKED | {"patternProperties", "additionalProperties"}
"""What may not be checked without the regular expressions beside it."""
_BY_NAME = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names and no keywords."""


class _TooMuch(Exception):
    """A schema takes more steps than it may."""


def faulty(schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a schema itself, None when nothing is."""
    from jsonschema import validators

    if len(orjson.dumps(schema)) > LARGEST:
        return f"it has more than {LARGEST} bytes"
    kind = _validator(schema)
    factory = cast("Any", validators)
    linear = factory.extend(kind, {"uniqueItems": _unique})
    try:
        check = linear(kind.META_SCHEMA, registry=factory.SPECIFICATIONS, format_checker=kind.FORMAT_CHECKER)
        fault = next(check.iter_errors(schema), None)
    except RecursionError:
        return "it is nested too deeply"
    return fault.message[:200] if fault else None


def _validator(schema: Mapping[str, Any]) -> Any:
    """Return the class for the draft that a schema names; the newest one where it names none that is known."""
    from jsonschema import validators

    drafts = [getattr(validators, f"Draft{draft}Validator") for draft in _DRAFTS]
    named = schema.get("$schema")
    kinds = (kind for kind in drafts if isinstance(named, str) and named.rstrip("#") == _id(kind))
    return next(kinds, drafts[-1])


def _id(kind: Any) -> str:
    return kind.ID_OF(kind.META_SCHEMA).rstrip("#")


def _unique(_: object, wanted: object, instance: Any, __: object) -> Iterator[Any]:
    """Find two equal items by their JSON: jsonschema compares each with each, 24 s for 4,000 objects."""
    from jsonschema import ValidationError

    if wanted is not True or not isinstance(instance, list):
        return
    items = cast("list[Any]", instance)
    if len({orjson.dumps(item, option=orjson.OPT_SORT_KEYS) for item in items}) < len(items):
        yield ValidationError("it has two equal items")


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
        _checker(_checkable(schema)).validate(orjson.loads(text))
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

    validator = _validator(schema)
    extend = cast("Any", validators).extend
    steps, room = STEPS, ERROR_BYTES

    def counted(check: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
        def step(*arguments: Any) -> Iterator[Any]:
            nonlocal steps, room
            steps -= 1 + _size(arguments[1]) // 16
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

    bounded: Any = extend(
        validator, {name: counted(check) for name, check in (validator.VALIDATORS | {"uniqueItems": _unique}).items()}
    )
    return bounded(schema, registry=cast("Any", Registry)())


def _size(value: Any) -> int:
    """Return the members of a keyword's value; each is compared, or looked for."""
    return len(cast("list[Any]", value)) if isinstance(value, list | dict) else 0


def _checkable(node: Any, *, names: bool = False) -> Any:
    """Return a schema without what is not checked. It was parsed by pydantic, so it is not deep."""
    if isinstance(node, list):
        return [_checkable(inner) for inner in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    inside = cast("dict[str, Any]", node)
    omitted = frozenset[str]() if names else _OF_PATTERNS if "patternProperties" in inside else _UNCHECKED
    return {
        name: _checkable(inner, names=name in _BY_NAME and not names)
        for name, inner in inside.items()
        if name not in omitted
    }
