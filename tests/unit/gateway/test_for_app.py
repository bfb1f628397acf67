"""Whose request it is that a front asks: what its app's key says of turn and storing counts at the node."""

from __future__ import annotations

import pytest

from state.keys import Key, KeyKind
from tasks.gateway.application import for_app
from tasks.plan import gateway


@pytest.mark.parametrize(
    ("kind", "name", "words", "is_background", "stores"),
    [
        ("fleet", "fleet.mini", "background no-store", True, False),
        ("fleet", "fleet.mini", "no-store", False, False),
        ("fleet", "fleet.mini", "", False, True),
        ("app", "mlxq", "background", True, True),
        ("app", "my-app", "background no-store", False, True),
        ("member", "node.studio", "background no-store", False, True),
    ],
)
def test_a_front_speaks_for_an_app_and_an_app_does_not(
    kind: KeyKind, name: str, words: str, *, is_background: bool, stores: bool
) -> None:
    scope = {"headers": [(gateway.APP.encode(), words.encode())]}
    key = for_app(Key(name, "00", 0.0, kind=kind), scope)
    assert (key.background, key.store) == (is_background, stores)


def test_nothing_makes_a_key_more_than_it_is() -> None:
    scope = {"headers": [(gateway.APP.encode(), b"interactive store")]}
    key = for_app(Key("fleet.mini", "00", 0.0, kind="fleet", background=True, store=False), scope)
    assert (key.background, key.store) == (True, False)
