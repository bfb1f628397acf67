"""A dataclass whose methods come later is as the standard library's in all that is seen of it."""

from __future__ import annotations

import copy
import dataclasses
import threading
from dataclasses import field

import pytest

from state.classes import dataclass


@dataclass(frozen=True)
class Point:
    """A base."""

    x: int
    y: int = 2
    hidden: str = field(default="no", repr=False, compare=False)


@dataclass(frozen=True)
class Named(Point):
    """A class that inherits."""

    names: list[str] = field(default_factory=list[str])


def test_it_is_what_the_standard_library_makes():
    assert [row.name for row in dataclasses.fields(Named)] == ["x", "y", "hidden", "names"]
    named = Named(1, names=["a"])
    assert (named.x, named.y, named.names) == (1, 2, ["a"])
    assert repr(named) == "Named(x=1, y=2, names=['a'])"
    assert named == Named(1, hidden="yes", names=["a"]) != Named(2)
    assert dataclasses.replace(named, y=3).y == 3
    assert dataclasses.asdict(Point(1)) == {"x": 1, "y": 2, "hidden": "no"}
    assert hash(Point(1)) == hash(Point(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        named.x = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        named.other = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del named.x  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="y2"):
        Point(1, y2=3)  # pyright: ignore[reportCallIssue]


def test_what_is_compared_and_hashed_is_what_the_standard_library_compares():
    @dataclass
    class Open:
        value: int

    @dataclass(frozen=True, eq=False)
    class Itself:
        value: int

    @dataclass(frozen=True)
    class Own:
        value: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert Open(1) == Open(1) != Open(2)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Open(1))
    opened = Open(1)
    opened.value = 2
    assert opened == Open(2)
    assert Itself(1) != Itself(1)
    assert len({Itself(1), Itself(1)}) == 2
    assert Own(1) == Own(2)
    assert hash(Own(1)) == 7
    assert Point(1) != Named(1, 2)
    assert len({Point(1), Point(1, hidden="x"), Point(2)}) == 2
    assert copy.copy(Point(3)) == Point(3)


def test_threads_that_make_the_first_instances_get_whole_ones():
    for _ in range(20):

        @dataclass
        class Fresh:
            value: int

        barrier, made = threading.Barrier(4), list[int]()

        def make(cls: type[Fresh] = Fresh, barrier: threading.Barrier = barrier, made: list[int] = made) -> None:
            barrier.wait()
            made.append(cls(7).value)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [7] * 4
