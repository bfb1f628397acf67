"""The state of a conversation and the commands that change it. Pure: nothing is sent, printed or written here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from state.errors import UsageProblem

COMMANDS: Mapping[str, str] = {
    "/model": "[TIER]  show the tiers, or ask another one",
    "/system": "[TEXT]  show the system prompt, or set it; /system none removes it",
    "/clear": "forget the conversation so far",
    "/save": "FILE  write the conversation to a Markdown file",
    "/help": "show these commands",
    "/bye": "exit, as Ctrl-D does",
}
ALIASES: Mapping[str, str] = {"/exit": "/bye", "/quit": "/bye", "/?": "/help", "/set": "/system"}
"""What people type out of habit, from Ollama and others."""
QUOTES = '"""'
"""Begins and ends a prompt of several lines."""
REMOVE = "none"


@dataclass
class Dialog:
    """What was said, and to which tier the next prompt goes."""

    tier: str
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Of OpenAI's chat API, without the system prompt."""

    def body(self, prompt: str) -> dict[str, Any]:
        """Return the request for the answer to `prompt`, with all that was said before."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.messages, {"role": "user", "content": prompt}]
        return {"model": self.tier, "messages": messages, "stream_options": {"include_usage": True}}

    def add(self, prompt: str, answer: str) -> None:
        """Remember a prompt and what was answered; a prompt without an answer is forgotten."""
        if answer:
            self.messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def markdown(self) -> str:
        """Return the conversation as a document."""
        parts = [("system", self.system)] if self.system else []
        parts += [(message["role"], message["content"]) for message in self.messages]
        return "\n".join(f"## {role}\n\n{text.strip()}\n" for role, text in parts)


def command(line: str) -> tuple[str, str] | None:
    """Return the command of a line and the rest of it; None for a prompt. Raises UsageProblem for an unknown one."""
    word, _, rest = line.strip().partition(" ")
    name = ALIASES.get(word, word)
    if name in COMMANDS:
        return name, rest.strip()
    if word.startswith("/") and "/" not in word[1:]:  # a path is a prompt
        raise UsageProblem(f"There is no command {word!r}.", hint="/help")
    return None


def switch(dialog: Dialog, name: str, tiers: Sequence[str]) -> str:
    """Ask another tier from now on, or return the list of them. Raises UsageProblem for an unknown one."""
    if not name:
        return "\n".join(f"{'*' if tier == dialog.tier else ' '} {tier}" for tier in tiers)
    if name not in tiers:
        raise UsageProblem(f"There is no tier {name!r}.", hint="/model")
    dialog.tier = name
    return f"{name} answers from now on."


def instruct(dialog: Dialog, text: str) -> str:
    """Set the system prompt, remove it, or return it."""
    if not text:
        return dialog.system or "There is no system prompt."
    dialog.system = "" if text == REMOVE else _unquoted(text)
    return "The system prompt is set." if dialog.system else "The system prompt is removed."


def _unquoted(text: str) -> str:
    """Return a text without the quotes around all of it."""
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text


def is_complete(text: str) -> bool:
    """Return whether Enter sends the text: quotes that began a prompt of several lines are closed."""
    stripped = text.strip()
    return not stripped.startswith(QUOTES) or (len(stripped) >= 2 * len(QUOTES) and stripped.endswith(QUOTES))


def prompt_of(text: str) -> str:
    """Return what is sent of a text that was typed: without the quotes around several lines."""
    stripped = text.strip()
    return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip() if stripped.startswith(QUOTES) else stripped
