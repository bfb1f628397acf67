"""Homes with a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mlxq_home import Mlxq, make_tiny

from state.paths import Home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the weights."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def mlxq(home: Home, tiny: Path) -> Iterator[Mlxq]:
    made = Mlxq(home)
    made.serve(tiny, "fast")
    yield made
    made.close()
