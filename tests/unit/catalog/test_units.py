"""Sizes as people read them: memory in powers of 1024, files in powers of 1000, as macOS counts both."""

from __future__ import annotations

import pytest

from catalog import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "2 KB"), (5 * 2**20, "5 MB"), (2**20 - 1, "1 MB"),
        (1.5 * 2**30, "1.5 GB"), (128 * 2**30, "128 GB"),
    ],
)  # fmt: skip
def test_memory_is_counted_as_it_is_sold(count: float | None, text: str) -> None:
    assert units.memory(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (999, "999 B"), (1023, "1 KB"), (98_000_000, "98 MB"), (999_999_999, "1 GB"), (29.5e9, "29.5 GB")],
)
def test_files_are_counted_as_the_finder_and_the_hub_count_them(count: float | None, text: str) -> None:
    assert units.files(count) == text


@pytest.mark.parametrize(
    ("names", "text"), [((), ""), (("a",), "a"), (("a", "b"), "a and b"), (("a", "b", "c", "d"), "a, b, c and d")]
)
def test_names_are_listed_as_in_a_sentence(names: tuple[str, ...], text: str) -> None:
    assert units.listed(names) == text
