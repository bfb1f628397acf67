"""The main job, as a new user does it: one command, real engines and the real gateway, an answer with Paris in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.user import QUESTION, User

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """Return a person in an empty home; what they started ends with the test."""
    person = User(tmp_path / "home")
    yield person
    person.leave()


def test_one_command_and_the_capital_of_france_is_paris(user: User) -> None:
    printed = user.run("setup", "--accept-defaults")

    assert f"http://127.0.0.1:{user.gateway}/v1" in printed
    assert {service["state"] for service in user.services().values()} == {"healthy"}
    assert "Paris" in user.run("chat", QUESTION)
