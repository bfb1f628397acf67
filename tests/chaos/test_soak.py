"""Fault upon fault while clients ask: mlxq ends healthy, with no process too many and no request lost.

`SOAK_FAULTS=200 SOAK_SEED=7 uv run pytest tests/chaos/test_soak.py -s` for more faults, or others.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.mlxq_home import Mlxq
from support.soak import Soak

from tasks.system import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14400)]


def test_a_soak_of_random_faults_under_load_ends_healthy(mlxq: Mlxq, tiny: Path) -> None:
    """Real worker and gateway, fake engines; tests/support/soak.py says what counts as lost."""
    soak = Soak(mlxq, tiny, seed=int(os.environ.get("SOAK_SEED", "4")))
    soak.run(int(os.environ.get("SOAK_FAULTS", "12")))
    print(soak.account())

    assert soak.lost() == []
    assert sum(each.said == "200" for each in soak.asked) > soak.faults.total()
    assert soak.lost_jobs() == 0
    assert mlxq.db.value("PRAGMA integrity_check") == "ok"
    for name in ("standard", "fast", "longctx", "gateway", "page"):
        assert list(process.find_orphans(str(mlxq.home.root), name)) == [mlxq.identity(name)]
