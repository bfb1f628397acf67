"""What the documents say mlxq chooses, held against what practitioners run on a Mac of that memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text()
DEPARTURES = PAGE.partition("### Where mlxq departs")[2].partition("\n### ")[0]
PRACTICE: dict[int, tuple[set[str], set[str]]] = {
    8: ({"lfm2.5-2.6b", "gemma-4-e2b", "gemma-4-e4b"}, {"lfm2.5-1.2b"}),
    16: ({"qwen3.5-4b", "ornith-9b", "gemma-4-12b"}, {"lfm2.5-1.2b"}),
    24: ({"qwen3.5-9b", "gemma-4-12b", "gpt-oss-20b"}, {"qwen3.5-4b"}),
    32: ({"qwen3.8-27b", "gemma-4-26b-a4b"}, {"qwen3.5-4b"}),
    36: ({"qwen3.8-27b", "qwen3.6-35b-a3b"}, set()),
    48: ({"qwen3.8-27b"}, {"qwen3.6-35b-a3b"}),
    64: ({"qwen3.8-27b"}, {"qwen3.6-35b-a3b"}),
    96: ({"qwen3.8-27b"}, {"qwen3.6-35b-a3b", "qwen3-coder-next"}),
    128: ({"qwen3.6-35b-a3b", "qwen3.8-27b", "qwen3-coder-next", "gpt-oss-120b"}, {"qwen3.6-35b-a3b", "qwen3.8-27b"}),
    256: ({"qwen3.8-27b"}, set()),
    512: (set(), {"qwen3.6-35b-a3b"}),
}
"""By GB of memory: models that people run as the main one, and beside it; none where no practice was collected of what
mlxq can serve. Rapid-MLX docs/benchmarks (2026-08-18, table 2), Osaurus (July 2026), owners' blogs (autumn 2026)."""


def rows() -> dict[int, tuple[str, str]]:
    """Return the models at standard and fast of the balanced table, by GB of memory; fast may be "as standard"."""
    table = PAGE.partition("Balanced, for one user")[2].partition("For a fleet of agents")[0]
    stacks: dict[int, tuple[str, str]] = {}
    for line in table.splitlines():
        if size := re.match(r"\| (\d+) GB, ", line):
            _, _, standard, fast, *_ = line.split("|")
            stacks[int(size.group(1))] = (_model(standard), _model(fast))
    return stacks


def _model(cell: str) -> str:
    name = re.search(r"`([^`]+)`", cell)
    return name.group(1) if name else cell.strip()


def test_the_table_shows_a_mac_of_each_memory() -> None:
    assert list(rows()) == list(PRACTICE)


@pytest.mark.parametrize("size", PRACTICE)
def test_a_stack_is_what_people_run_or_the_page_says_why_not(size: int) -> None:
    standard, fast = rows()[size]
    mains, seconds = PRACTICE[size]
    same = standard in mains and (fast in seconds or not seconds)

    assert same or re.search(rf"^- \*\*[^*]*\b{size}\b[^*]*GB:\*\*", DEPARTURES, re.MULTILINE), (standard, fast)
