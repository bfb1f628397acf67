"""Kinds of classes: enums whose members are explained, and dataclasses whose methods are generated late.

A dataclass of this module gets its methods when its first instance is made, not when the class is defined. The
standard library compiles five functions for each frozen one, about 1 ms. A command defines up to eighty and makes
instances of a few: to generate all took half of its time. What is generated is the standard library's own, but for
`__repr__`: that is 40 % of the work, and one function does for all.
"""

from __future__ import annotations

import dataclasses
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type | None = None, /, **options: bool) -> Any:
        """Return the class as dataclasses.dataclass would with these options, of which `slots` and `repr` are none."""
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


GENERATING = threading.RLock()
"""Reentrant: a class that is completed completes those that it inherits from."""


class _Generation:
    """The methods of one class that are to be generated; stands in for its fields until then."""

    def __init__(self, cls: type, options: dict[str, bool]) -> None:
        self.cls, self.options, self.done = cls, options, False

    def complete(self) -> None:
        """Generate the methods, once."""
        if self.done:
            return
        with GENERATING:
            if not self.done:
                dataclasses.dataclass(repr=False, **self.options)(self.cls)
                self.done = True

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
