"""The conversation on a terminal: reads a line, does its command or streams its answer, until it ends."""

from __future__ import annotations

import sys
import termios
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlxq import answer_wait, gateway_client, render
from mlxq.conversation import dialog as dialogs
from mlxq.conversation import storage
from mlxq.conversation.dialog import Dialog
from mlxq.conversation.markdown import MarkdownStream
from mlxq.gateway_client import TokenCounts
from mlxq.terminal import raw
from state.errors import MlxqError, UsageProblem
from state.paths import Home

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from rich.console import Console

PROMPT, MORE = ">>> ", "... "


class Conversation:
    """One conversation at a terminal."""

    def __init__(
        self, home: Home, url: str, tiers: Sequence[str], dialog: Dialog, *, limit_s: float, keeps: bool
    ) -> None:
        from rich.console import Console

        self._home = home
        self._url = url
        self._key = gateway_client.key(home)
        self._tiers = tiers
        self._dialog = dialog
        self._limit_s = limit_s
        self._keeps = keeps
        self._console: Console = Console(file=raw(sys.stdout), highlight=False, no_color=render.refuses_color())

    def run(self) -> None:
        """Read and answer until /bye or Ctrl-D. Ctrl-C stops an answer, or clears the line."""
        session = _line_reader(storage.history(self._home) if self._keeps else None)
        earlier = len(self._dialog.messages) // 2
        after = f" after {earlier} earlier prompt{'' if earlier == 1 else 's'}" if earlier else ""
        render.say(f"{self._dialog.tier} answers{after}. /help shows the commands, Ctrl-D exits.")
        while True:
            try:
                text = session.prompt(PROMPT)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text.strip() and not self._do(text):
                return

    def _do(self, text: str) -> bool:
        """Do a command or answer a prompt; return whether the conversation continues."""
        try:
            if words := dialogs.command(text):
                return self._command(*words)
            self._answer(dialogs.prompt_of(text))
        except MlxqError as problem:
            render.problem(problem)
        return True

    def _command(self, name: str, rest: str) -> bool:
        if name == "/bye":
            return False
        actions: dict[str, Callable[[], str]] = {
            "/model": lambda: dialogs.switch(self._dialog, rest, self._tiers),
            "/system": lambda: dialogs.instruct(self._dialog, rest),
            "/clear": self._clear,
            "/save": lambda: self._save(rest),
            "/help": _help,
        }
        render.say(actions[name]())
        return True

    def _clear(self) -> str:
        self._dialog.messages.clear()
        if self._keeps:
            storage.keep(self._home, self._dialog)
        return "The conversation is forgotten."

    def _save(self, name: str) -> str:
        if not name:
            raise UsageProblem("Name a file.", hint="/save FILE")
        path = Path(name).expanduser()
        storage.save(path, self._dialog)
        return f"Wrote {path}."

    def _answer(self, prompt: str) -> None:
        """Stream one answer; what was made of it is kept also when it was stopped or broke off."""
        answer = StreamedAnswer(self._home, self._dialog.tier, self._console)
        try:
            with _without_echo():
                answer.stream(self._url, self._key, self._dialog.body(prompt), self._limit_s)
        except KeyboardInterrupt:
            render.say("Stopped.")
        finally:
            self._dialog.add(prompt, answer.text)
            if self._keeps:
                storage.keep(self._home, self._dialog)
        if answer.usage:
            self._console.print(answer.figures(answer.usage), style="bright_black")


class StreamedAnswer:
    """One answer as it arrives, with its times."""

    def __init__(self, home: Home, tier: str, console: Console) -> None:
        self.text = ""
        self.usage: TokenCounts | None = None
        self._home = home
        self._tier = tier
        self._console = console
        self._began = self._first_at = self._last_at = time.monotonic()

    def stream(self, url: str, key: str, body: dict[str, object], limit_s: float) -> None:
        """Request it and draw it. Raises MlxqError, KeyboardInterrupt."""
        with MarkdownStream(self._console) as screen:

            def wait(waited_s: float) -> None:
                screen.note(f"Waiting: {answer_wait.reason(self._home, self._tier, waited_s)}.")

            pieces = gateway_client.stream(url, key, body, limit_s=limit_s, on_silence=wait, on_usage=self._note_usage)
            with closing(pieces):
                for piece in pieces:
                    self._last_at = time.monotonic()
                    self._first_at = self._first_at if self.text else self._last_at
                    self.text += piece
                    screen.add(piece)

    def _note_usage(self, usage: TokenCounts) -> None:
        self.usage = usage

    def figures(self, usage: TokenCounts) -> str:
        """Return tokens, speed and reuse in a line. The speed is that from the first token to the last."""
        took_s = self._last_at - self._first_at
        speed = f", {(usage.completion - 1) / took_s:.1f} tokens/s" if usage.completion > 1 and took_s > 0 else ""
        cached = f", {usage.cached:,} cached" if usage.cached else ""
        first = render.span(self._first_at - self._began)
        return f"{usage.completion:,} tokens{speed}, first after {first}, prompt {usage.prompt:,} tokens{cached}"


@contextmanager
def _without_echo() -> Generator[None]:
    """Let what is typed wait for the next prompt: shown in an answer, it would shift the lines that are drawn again."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _help() -> str:
    commands = [f"{name:<9}{text}" for name, text in dialogs.COMMANDS.items()]
    keys = [
        'Alt-Enter begins a new line, and so does Enter after an opening """.',
        "Ctrl-C stops an answer. The arrow keys bring back earlier prompts.",
    ]
    return "\n".join([*commands, "", *keys])


def _line_reader(history: Path | None) -> PromptSession[str]:
    """Return what reads prompts, with history and completion; prompts are kept in `history`, or in memory."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.output import create_output

    return PromptSession(
        history=FileHistory(str(history)) if history else InMemoryHistory(),
        completer=WordCompleter(list(dialogs.COMMANDS), sentence=True),
        complete_while_typing=False,
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=_keys(),
        output=create_output(stdout=raw(sys.stdout)),
        enable_open_in_editor=True,
    )


def _keys() -> KeyBindings:
    """Return what Enter does: it sends, except in a prompt of several lines that is not ended."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if dialogs.is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    keys.add("enter")(enter)
    keys.add("escape", "enter")(new_line)
    return keys
