from pathlib import Path

import pytest

from state.metrics import cloud_spend
from tasks.gateway.cloud.budget import CloudBudget


def test_two_gateways_that_spend_side_by_side_share_one_cap(tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    old, new = CloudBudget(path, 1.0), CloudBudget(path, 1.0)
    old.charge({"cost": 0.7})
    assert new.exhausted() is None
    new.charge({"cost": 0.4})

    assert cloud_spend.read(path).usd == pytest.approx(1.1)
    assert old.exhausted()
    assert new.exhausted()


def test_what_was_spent_is_known_when_the_file_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    budget = CloudBudget(path, 1.0)
    budget.charge({"cost": 1.0})
    path.unlink()

    assert budget.exhausted()
