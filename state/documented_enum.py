"""Enums whose members each carry a sentence for the user."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class DocumentedEnum(StrEnum):
    """A member is written `WORD = "word", "what it means"` and is the word; `meaning` is the sentence."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Create the member and attach its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member
