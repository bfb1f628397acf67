"""`mlxq engine use --tier`: what changes with a tier whose engine serves others too."""

from __future__ import annotations

import pytest

from mlxq import cli
from state import settings, stack
from state.db import Database
from state.paths import Home
from state.stack import Engine, Tier

MAIN = Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 8000, 32_768, 1, 1, 1)


@pytest.mark.parametrize(
    ("tier", "words", "others"),
    [
        ("fast", "standard and longctx change with fast: one engine serves them.", ["standard", "longctx"]),
        ("own", "", []),
    ],
)
def test_the_tiers_that_change_too_are_named(
    tier: str, words: str, others: list[str], *, db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Tier("own", Engine("own", "qwen3.5-4b", "int4", "hub:a/c", 8001, 32_768, 1, 1, 1))
    stack.replace(db, [*(Tier(name, MAIN) for name in ("standard", "fast", "longctx")), own])

    assert cli.run(["engine", "use", "vllm-mlx", "--tier", tier]) == 0
    said = capsys.readouterr().err
    assert words in said if words else "change with" not in said
    assert settings.load(home)["tier-engines"] == dict.fromkeys([tier, *others], "vllm-mlx")
