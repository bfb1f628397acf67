"""The text that is carried from one machine to another: whole, or refused in words."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import share

from state.errors import UsageProblem
from tasks.fleet import token
from tasks.fleet.token import Invitation

INVITATION = Invitation("mini", ("https://10.0.0.1:4000", "https://mini.local:4000"), "ab" * 32, token.new_secret())


def packed(**changes: Any) -> str:
    content = {"n": "mini", "a": ["https://10.0.0.1:4000"], "f": "ab" * 32, "s": "s" * 43} | changes
    return token.PREFIX + base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def test_a_token_says_what_it_was_made_of_also_when_a_terminal_broke_it() -> None:
    text = INVITATION.text()

    assert token.parse(text) == INVITATION
    assert token.parse(f"  {text[:40]}\n{text[40:]}\n") == INVITATION
    assert INVITATION.secret not in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-mlxq-1",
        INVITATION.text()[:-9],
        "mlxq1.",
        "mlxq1.!!!!",
        packed(n="../keys"),
        packed(f="ab"),
        packed(f=None),
        packed(s="short"),
        packed(a=[]),
        packed(a="https://10.0.0.1:4000"),
        packed(a=["http://10.0.0.1:4000"]),
        packed(a=["https://10.0.0.1"]),
        packed(a=["https://user@10.0.0.1:4000"]),
        packed(a=["https://10.0.0.1:4000/path"]),
        packed(a=["https://999.0.0.1:4000"]),
        packed(a=["https://10.0.0.1:4000"] * 17),
        packed(a=[7]),
        "mlxq1." + "a" * 3000,
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem, match="This is no invitation"):
        token.parse(text)


@settings(max_examples=share(25))
@given(st.text(max_size=80))
def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(UsageProblem):
        token.parse(f"mlxq1.{text}")


def test_what_is_stored_of_a_secret_is_not_the_secret() -> None:
    assert len({token.new_secret() for _ in range(8)}) == 8
    assert token.digest("a") != token.digest("b")
    assert len(token.digest("a")) == 64
