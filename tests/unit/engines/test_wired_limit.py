"""An engine wires no more memory than the plan gives it, whatever it asks macOS for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.engines import rapid_mlx_program, vllm_mlx_program

GIB = 2**30
WHOLE = 48 * GIB
PROGRAMS = pytest.mark.parametrize("program", [vllm_mlx_program, rapid_mlx_program])


class Metal:
    """What mlx.core does with a wired limit: it keeps the new one, and returns the one before."""

    def __init__(self, *, available: bool) -> None:
        self.limit = 0
        self.metal = SimpleNamespace(is_available=lambda: available)

    def set_wired_limit(self, limit: int) -> int:
        """Keep the limit; one above the working set is an error, as in MLX."""
        if limit > WHOLE:
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than the maximum working set size")
        before, self.limit = self.limit, limit
        return before


@PROGRAMS
def test_an_engine_that_asks_for_all_of_the_working_set_gets_its_part(program: Any) -> None:
    """As mlx_lm/generate.py and the engines do at each generation: set the whole set, and later the old limit."""
    mx = Metal(available=True)
    program.cap_wired_limit(mx, 6 * GIB)

    before = mx.set_wired_limit(WHOLE)
    assert mx.limit == 6 * GIB
    assert mx.set_wired_limit(before) == 6 * GIB
    assert mx.limit == 0


@PROGRAMS
def test_a_smaller_wish_stays(program: Any) -> None:
    mx = Metal(available=True)
    program.cap_wired_limit(mx, 6 * GIB)
    mx.set_wired_limit(GIB)

    assert mx.limit == GIB


@PROGRAMS
@pytest.mark.parametrize(("available", "planned"), [(False, 6 * GIB), (True, 0)])
def test_without_metal_or_a_plan_nothing_changes(program: Any, available: bool, planned: int) -> None:
    mx = Metal(available=available)
    program.cap_wired_limit(mx, planned)
    mx.set_wired_limit(WHOLE)

    assert mx.limit == WHOLE
