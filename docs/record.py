"""Record the film of the README: `uv run python docs/record.py`, into docs/img/film.svg. Needs tmux and some minutes.

A real mlxq in an empty home, typed at in tmux: set-up, an answer, an engine that is killed, the live view. What is on
the screen is kept whenever it changed, and pauses are cut to PAUSE_S. The film is one SVG without scripts: the screens
stand side by side, and an animation shows one after another. A line that is on several screens is written once.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from rich.color import ColorType
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.ports import free_port, free_run

FILM = Path(__file__).parent / "img" / "film.svg"
COLUMNS, ROWS = 88, 26
LETTER, LINE, MARGIN = 8.4, 18, 14
"""Pixels."""
LOOK_S, PAUSE_S, END_S = 0.3, 2.5, 5.0
LIMIT_S = 400.0
SPEED = 1.45
"""How much faster it is shown than it was, so that it takes two minutes on a machine with two cores."""
SESSION = ["tmux", "-L", "mlxq-film"]
DARK = ["3c4043", "ff7b72", "4fc3b0", "e3b341", "79a8ff", "d2a8ff", "56d4dd", "dee0e2"]
BRIGHT = ["8b949e", "ffa198", "7ee7cd", "f2cc60", "a5c8ff", "e2c5ff", "b3f0ff", "ffffff"]
"""Colors 0 to 7 and 8 to 15 of the terminal."""


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color)
    return red, green, blue


THEME = TerminalTheme(_rgb("181a1b"), _rgb("dee0e2"), list(map(_rgb, DARK)), list(map(_rgb, BRIGHT)))

Screen = tuple[str, ...]


def main() -> None:
    """Record and write."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / ".mlxq"
        world = os.environ | {
            "MLXQ_HOME": str(home),
            "HOME": folder,
            "PS1": "$ ",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "MLXQ_LITELLM_PORT": str(free_port()),
            "MLXQ_PAGE_PORT": str(free_port()),
            "MLXQ_TIER_PORT_BASE": str(free_run(10)),
        }
        world.pop("TMUX", None)
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        subprocess.run(
            [*SESSION, "-f", "/dev/null", "new-session", "-d", *size, "env PS1='$ ' bash --norc --noprofile"],
            env=world,
            check=True,
        )
        try:
            film = Film()
            play(film, world)
        finally:
            subprocess.run([*SESSION, "kill-server"], check=False)
            subprocess.run(["mlxq", "down"], env=world, check=False, stdout=subprocess.DEVNULL)
    FILM.write_text(drawn(film.screens), encoding="utf-8")


class Film:
    """What was on the screen, and for how long."""

    def __init__(self) -> None:
        self.screens: list[tuple[Screen, float]] = []

    def look(self) -> str:
        """Keep the screen if it changed, and return its text."""
        shown = _tmux("capture-pane", "-e", "-p").split("\n")[:ROWS]
        screen = tuple(line.rstrip() for line in shown)
        if self.screens and self.screens[-1][0] == screen:
            before = self.screens[-1][1]
            self.screens[-1] = (screen, min(PAUSE_S, before + LOOK_S))
        else:
            self.screens.append((screen, LOOK_S))
        return Text.from_ansi("\n".join(screen)).plain

    def until(self, *words: str) -> None:
        """Look until one of these is on the screen. Raises TimeoutError."""
        limit = time.monotonic() + LIMIT_S
        while not any(word in self.look() for word in words):
            if time.monotonic() > limit:
                raise TimeoutError(f"{words} did not appear:\n{self.look()}")
            time.sleep(LOOK_S)

    def rest(self, seconds: float) -> None:
        """Look for so long."""
        for _ in range(round(seconds / LOOK_S)):
            self.look()
            time.sleep(LOOK_S)

    def type(self, text: str) -> None:
        """Type a command, some letters at a time, and Enter."""
        for start in range(0, len(text), 6):
            _tmux("send-keys", "-l", text[start : start + 6])
            time.sleep(0.05)
            self.look()
        self.rest(0.6)
        _tmux("send-keys", "Enter")

    def command(self, text: str) -> None:
        """Type a command and wait for the prompt below what it printed."""
        _tmux("send-keys", "C-l")
        time.sleep(0.2)
        self.type(text)
        self.rest(0.6)
        limit = time.monotonic() + LIMIT_S
        while not self.look().rstrip().endswith("\n$") and time.monotonic() < limit:
            time.sleep(LOOK_S)
        self.rest(PAUSE_S)


def play(film: Film, world: dict[str, str]) -> None:
    """Type what the film shows."""
    film.rest(0.6)
    film.type("mlxq setup")
    film.until("[Enter]")
    film.rest(PAUSE_S)
    _tmux("send-keys", "Enter")
    film.until("Next: mlxq chat")
    film.rest(PAUSE_S)
    film.command('mlxq chat "What is the capital of France?"')
    status = subprocess.run(["mlxq", "status", "--json"], env=world, check=True, capture_output=True)
    engine = next(row for row in json.loads(status.stdout)["services"] if row["kind"] == "engine")
    film.command(f"kill -9 {engine['pid']}   # the engine of {' and '.join(engine['tiers'])}")
    film.command("mlxq status")
    film.command('mlxq chat "Are you there?"')
    film.command(f"mlxq why {engine['name']} | tail")
    film.command("mlxq status")
    film.type("mlxq top")
    film.rest(5)
    _tmux("send-keys", "q")
    film.rest(END_S)


def _tmux(*words: str) -> str:
    return subprocess.run([*SESSION, *words], check=True, capture_output=True, text=True).stdout


# ------------------------------------------- the drawing


STYLE = """
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; white-space: pre;
  fill: {ink} }}
.film {{ animation: film {total:.1f}s steps(1, end) infinite }}
@media (prefers-reduced-motion: reduce) {{ .film {{ animation: none; transform: translateX(-{last:g}px) }} }}
@keyframes film {{ {keyframes} }}
"""


def drawn(screens: Sequence[tuple[Screen, float]]) -> str:
    """Return the film as an SVG."""
    lines = {line: f"l{number}" for number, line in enumerate(dict.fromkeys(_lines(screens)))}
    width, height = COLUMNS * LETTER + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    style = STYLE.format(
        ink=THEME.foreground_color.hex,
        total=sum(seconds for _, seconds in screens) / SPEED,
        last=(len(screens) - 1) * width,
        keyframes="".join(_keyframes(screens, width)),
    )
    frames = "".join(_frame(number * width, screen, lines) for number, (screen, _) in enumerate(screens))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="mlxq on a terminal">\n<style>{style}</style>\n'
        f"<defs>{''.join(_line(line, name) for line, name in lines.items())}</defs>\n"
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{THEME.background_color.hex}"/>\n'
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN:g}" height="{height - 2 * MARGIN:g}">'
        f'<g class="film">{frames}</g></svg>\n</svg>\n'
    )


def _lines(screens: Sequence[tuple[Screen, float]]) -> Iterator[str]:
    yield from (line for screen, _ in screens for line in screen if line)


def _keyframes(screens: Sequence[tuple[Screen, float]], width: float) -> Iterator[str]:
    at, total = 0.0, sum(seconds for _, seconds in screens)
    for number, (_, seconds) in enumerate(screens):
        yield f"{100 * at / total:.2f}%{{transform:translateX({-number * width:g}px)}}"
        at += seconds


def _frame(x: float, screen: Screen, lines: dict[str, str]) -> str:
    rows = (f'<use href="#{lines[line]}" y="{row * LINE}"/>' for row, line in enumerate(screen) if line)
    return f'<g transform="translate({x:g})">{"".join(rows)}</g>\n'


def _line(line: str, name: str) -> str:
    """Return one line of the screen; each run of one color stands where its column is, whatever the font."""
    text = Text.from_ansi(line)
    runs = "".join(_run(text, start, end) for start, end in _runs(text))
    return f'<text id="{name}" y="14">{runs}</text>'


def _runs(text: Text) -> Iterator[tuple[int, int]]:
    """Yield begin and end of what has one style."""
    edges = sorted({0, len(text.plain), *(edge for span in text.spans for edge in (span.start, span.end))})
    yield from ((start, end) for start, end in itertools.pairwise(edges) if text.plain[start:end].strip())


def _run(text: Text, start: int, end: int) -> str:
    around = (span.style for span in text.spans if span.start <= start and end <= span.end)
    style = Style.combine([Style(), *(style for style in around if isinstance(style, Style))])
    plain = text.plain[start:end]
    word = plain.rstrip()
    marks = f' x="{start * LETTER:g}" textLength="{len(word) * LETTER:g}"'
    if style.color and style.color.type is not ColorType.DEFAULT:
        marks += f' fill="{style.color.get_truecolor(THEME).hex}"'
    if style.bold:
        marks += ' font-weight="bold"'
    return f"<tspan{marks}>{escape(word)}</tspan>"


if __name__ == "__main__":
    main()
