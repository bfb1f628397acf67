"""Kinds of classes: enums whose members are explained, and dataclasses whose methods are generated late.

A dataclass of this module gets its methods when its first instance is made, not when the class is defined. The
standard library compiles five functions for each frozen one, about 1 ms. A command defines up to eighty and makes
instances of a few: to generate all took half of its time. Its library finds the fields of those that are used; their
methods go by these fields, and nothing is compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type | None = None, /, **options: bool) -> Any:
        """Return the class as dataclasses.dataclass would with these options, but `slots`, `repr` and `order`."""
        if cls is None:
            return lambda decorated: dataclass(decorated, **options)
        generation = _Generation(cls, options)

        def new(subclass: type, *_args: object, **_kwargs: object) -> object:
            generation.complete()
            return object.__new__(subclass)

        cls.__new__ = new
        cls.__dataclass_fields__ = generation
        if "__repr__" not in vars(cls):
            cls.__repr__ = _repr
        return cls


def _repr(self: Any) -> str:
    """Return an instance as the standard library writes it."""
    fields = (field for field in dataclasses.fields(self) if field.repr)
    values = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields)
    return f"{type(self).__qualname__}({values})"


def _refuse_assignment(_self: object, name: str, _value: object) -> None:
    """Raise FrozenInstanceError."""
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(_self: object, name: str) -> None:
    """Raise FrozenInstanceError."""
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _initializer(cls: type) -> Callable[..., None]:
    """Return `__init__` of a class: it takes the values of the fields, and raises TypeError for any others."""
    fields = dataclasses.fields(cls)
    names, in_order = {field.name for field in fields}, [field.name for field in fields if not field.kw_only]
    missing = dataclasses.MISSING
    defaults = {field.name: field.default for field in fields if field.default is not missing}
    factories = {field.name: field.default_factory for field in fields if field.default_factory is not missing}

    def initialize(self: object, *args: object, **named: object) -> None:
        placed = dict(zip(in_order, args, strict=False))
        if len(args) > len(in_order) or not named.keys() <= names - placed.keys():
            wrong = sorted(named.keys() - names) or sorted(named.keys() & placed.keys())
            raise TypeError(f"{cls.__qualname__}() got unexpected or repeated values: {', '.join(wrong) or len(args)}")
        values = defaults | placed | named
        for name, make in factories.items():
            if name not in values:
                values[name] = make()
        if len(values) < len(names):
            raise TypeError(f"{cls.__qualname__}() misses {', '.join(sorted(names - values.keys()))}")
        vars(self).update(values)

    return initialize


class _FieldValues:
    """Compares and hashes instances of a class by its fields, as the standard library does."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    @functools.cached_property
    def values(self) -> Callable[[object], Any]:
        """What an instance is compared by."""
        names = [field.name for field in dataclasses.fields(self.cls) if field.compare]
        return attrgetter(*names) if names else lambda _: ()

    def equals(self) -> Callable[[Any, object], Any]:
        """Return `__eq__`."""

        def equals(first: Any, second: object) -> Any:
            if second.__class__ is not first.__class__:
                return NotImplemented
            return self.values(first) == self.values(second)

        return equals

    def hashes(self) -> Callable[[Any], int]:
        """Return `__hash__`."""
        return lambda instance: hash(self.values(instance))


GENERATING = threading.RLock()
"""Reentrant: a class that is completed completes those that it inherits from."""


class _Generation:
    """The methods of one class that are to be generated; stands in for its fields until then."""

    def __init__(self, cls: type, options: dict[str, bool]) -> None:
        self.by_fields, self.frozen = options.pop("eq", True), options.pop("frozen", False)
        self.cls, self.options, self.done = cls, options, False

    def complete(self) -> None:
        """Generate the methods, once."""
        if self.done:
            return
        with GENERATING:
            if not self.done:
                cls: Any = self.cls
                dataclasses.dataclass(init=False, repr=False, eq=False, **self.options)(self.cls)
                cls.__init__ = _initializer(self.cls)
                self._compare_by_fields()
                if self.frozen:
                    cls.__setattr__, cls.__delattr__ = _refuse_assignment, _refuse_deletion
                self.done = True

    def _compare_by_fields(self) -> None:
        """Attach what compares two instances; where one is changed in place, it has no hash."""
        if not self.by_fields or "__eq__" in vars(self.cls):
            return
        cls: Any = self.cls
        by, own_hash = _FieldValues(cls), "__hash__" in vars(cls)
        cls.__eq__ = by.equals()
        if not own_hash:
            cls.__hash__ = by.hashes() if self.frozen else None

    def __get__(self, instance: object, owner: type) -> dict[str, dataclasses.Field[Any]]:
        """Return the fields, for dataclasses.fields and for classes that inherit from this one."""
        self.complete()
        return vars(self.cls)["__dataclass_fields__"]


class DocumentedEnum(StrEnum):
    """A member is written `WORD = "word", "what it means"` and is the word; `meaning` is the sentence for users."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Create the member and attach its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member
