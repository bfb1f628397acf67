"""The door: what opens the page, once and for how long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxq.web.auth import COOKIE_S, LINK_S, PageAuth, link

KEY = "sk-mlxq-the-key-of-these-tests"


@pytest.fixture
def door(clock: Any) -> PageAuth:
    return PageAuth(KEY, clock)


def test_a_link_lets_in_once(door: PageAuth, clock: Any):
    token = link(KEY, clock.now)
    cookie = door.enter(token)
    assert cookie is not None
    assert door.knows(cookie)
    assert door.enter(token) is None


def test_a_link_is_good_for_a_minute(door: PageAuth, clock: Any):
    token = link(KEY, clock.now)
    clock.now += LINK_S
    assert door.enter(token) is None


def test_a_restarted_page_refuses_links_made_before_it(clock: Any):
    """Its memory of used links is gone; the link of a browser's history must not open it again."""
    token = link(KEY, clock.now)
    clock.now += 5
    assert PageAuth(KEY, clock).enter(token) is None


def test_a_cookie_outlives_a_restart_and_ends_after_a_month(door: PageAuth, clock: Any):
    cookie = door.enter(link(KEY, clock.now))
    assert PageAuth(KEY, clock).knows(cookie)
    clock.now += COOKIE_S
    assert not door.knows(cookie)


def test_a_new_key_ends_every_session(door: PageAuth, clock: Any):
    cookie = door.enter(link(KEY, clock.now))
    assert not PageAuth("sk-mlxq-another", clock).knows(cookie)


def test_a_link_is_no_cookie_and_a_cookie_no_link(door: PageAuth, clock: Any):
    token = link(KEY, clock.now)
    cookie = door.enter(link(KEY, clock.now))
    assert not door.knows(token)
    assert cookie is not None
    assert door.enter(cookie) is None


def test_an_action_needs_its_own_sessions_token(door: PageAuth, clock: Any):
    mine, other = door.enter(link(KEY, clock.now)), door.enter(link(KEY, clock.now))
    assert mine is not None
    assert other is not None
    assert door.may_act(mine, door.action_token(mine))
    assert not door.may_act(mine, door.action_token(other))
    assert not door.may_act(mine, "")


@given(token=st.text())
def test_no_text_opens_it(token: str):
    """Neither what a person mistypes nor what a program guesses raises or opens."""
    door = PageAuth(KEY)
    assert not door.knows(token)
    assert door.enter(token) is None
    assert not door.reads_metrics(token)


def test_a_changed_date_breaks_the_signature(door: PageAuth, clock: Any):
    cookie = door.enter(link(KEY, clock.now)) or ""
    until, rest = cookie.split(".", 1)
    assert not door.knows(f"{int(until) + 1}.{rest}")
