"""What anyone in the network may announce: a machine, or nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tasks.fleet import announcement
from tasks.fleet.announcement import SeenMachine

FINGERPRINT = "ab" * 32
SAID = {b"name": b"mini", b"version": b"0.1.0", b"fingerprint": FINGERPRINT.encode()}


def test_a_machine_is_read_as_it_was_announced() -> None:
    said = {
        name.encode(): text.encode() for name, text in announcement.properties("mini", "0.1.0", FINGERPRINT).items()
    }
    seen = announcement.read(said, ["10.0.0.3", "fe80::1", "8.8.8.8", "0.0.0.0"], 4000)

    assert seen == SeenMachine("mini", "0.1.0", FINGERPRINT, ("10.0.0.3:4000",)), "addresses of private networks alone"
    assert len((announcement.read(said, [f"10.0.0.{number}" for number in range(99)], 1) or seen).addresses) == 8


@pytest.mark.parametrize(
    ("said", "addresses", "port"),
    [
        ({}, ["10.0.0.3"], 4000),
        (SAID | {b"name": b"\x1b[2Jmini"}, ["10.0.0.3"], 4000),
        (SAID | {b"name": b"\xff\xfe"}, ["10.0.0.3"], 4000),
        (SAID | {b"name": None}, ["10.0.0.3"], 4000),
        (SAID | {b"fingerprint": b"9f86"}, ["10.0.0.3"], 4000),
        (SAID, [], 4000),
        (SAID, ["8.8.8.8", "evil.example", ""], 4000),
        (SAID, ["10.0.0.3"], None),
        (SAID, ["10.0.0.3"], 0),
        (SAID, ["10.0.0.3"], 70_000),
    ],
)
def test_what_can_be_no_machine_is_none(
    said: Mapping[bytes, bytes | None], addresses: list[str], port: int | None
) -> None:
    assert announcement.read(said, addresses, port) is None


def test_a_version_that_can_be_none_is_not_shown() -> None:
    seen = announcement.read(SAID | {b"version": b"1\n2"}, ["10.0.0.3"], 4000)
    assert seen
    assert seen.version == ""
