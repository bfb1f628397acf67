"""What a benchmark makes of an engine's answer."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.engines import benchmark


def called(name: str, arguments: str) -> list[dict[str, Any]]:
    return [{"function": {"name": name, "arguments": arguments}}]


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        (called("get_weather", '{"city":"Paris"}'), True),
        (called("get_time", "{}") + called("get_weather", '{"city":"paris, France"}'), True),
        (called("get_weather", '{"city":"Rome"}'), False),
        (called("get_time", '{"city":"Paris"}'), False),
        ([], False),
        (None, False),
    ],
)
def test_only_a_call_of_the_tool_for_the_city_is_right(calls: list[dict[str, Any]] | None, right: bool) -> None:
    body = {"choices": [{"message": {"content": "Sunny.", "tool_calls": calls}}]}
    assert benchmark._called(body) is right
