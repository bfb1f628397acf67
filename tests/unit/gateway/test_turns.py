"""The order of a chat's messages."""

from __future__ import annotations

from typing import Any

from tasks.gateway.dialects import anthropic_chat, turns


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_what_the_system_says_first_is_one_message():
    assert turns.arranged([said("system", "a"), said("system", "b"), said("user", "hi")]) == [
        said("system", "a\n\nb"),
        said("user", "hi"),
    ]


def test_what_it_says_later_stays_where_it_was():
    """All before it is the same as without it, so that it is read once."""
    before = [said("system", "a"), said("user", "hi"), said("assistant", "yes"), said("tool", "12")]

    assert turns.arranged([*before, said("system", "be brief")]) == [
        *before[:3],
        said("tool", "12\n\n<system-reminder>\nbe brief\n</system-reminder>"),
    ]


def test_after_an_answer_it_is_a_turn_of_its_own_and_beside_images_a_part():
    reminder = "<system-reminder>\nx\n</system-reminder>"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}

    assert turns.arranged([said("user", "hi"), said("assistant", "yes"), said("system", "x")])[2] == said(
        "user", reminder
    )
    assert turns.arranged([said("user", [image]), said("system", "x")]) == [
        said("user", [image, {"type": "text", "text": reminder}])
    ]


def test_claude_codes_list_of_agents_makes_no_second_system_message():
    """It comes after the first question (mid-conversation-system-2026-04-07); Qwen's templates fail on it."""
    body = {
        "model": "standard",
        "max_tokens": 9,
        "system": "You are Claude.",
        "messages": [said("user", "hi"), said("system", "Available agent types: claude")],
    }

    assert [message["role"] for message in anthropic_chat.to_chat(body)["messages"]] == ["system", "user"]
