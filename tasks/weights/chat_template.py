"""Try a model's chat template before the model is installed: it is a program of a stranger's that engines run.

They run it in jinja2's sandbox, which keeps it from Python's internals but not from running for ever; then every
request would hang. Run as a program, this module renders the template on stdin within limits of its own.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from catalog import config_json
from state.errors import Damaged

CPU_S = 3
"""Seconds of processor time for all trials; real templates take milliseconds."""
MEMORY_BYTES = 2 << 30
LONGEST = 16 << 20
"""Characters that a short conversation may become."""
WALL_S = 60.0
ENDLESS, ESCAPES = 3, 4
"""Exit codes of the trial."""
TALK = (("user", "Hi"), ("assistant", "Hi."), ("user", "?"))
MESSAGES = [{"role": role, "content": content} for role, content in TALK]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}}]
TRIALS: tuple[dict[str, Any], ...] = (
    {"messages": MESSAGES[:1], "add_generation_prompt": True},
    {"messages": MESSAGES, "add_generation_prompt": True, "tools": TOOLS, "enable_thinking": True},
    {"messages": [{"role": "system", "content": "S"}, *MESSAGES], "add_generation_prompt": False},
)


def check(name: str, folder: Path) -> None:
    """Raise Damaged when a template of the model `name` in `folder` does not end, or reaches out of the sandbox."""
    for template in templates(folder):
        code = _trial(template)
        if code == ESCAPES:
            raise Damaged(f"{name} has a chat template that reaches for Python's internals: engines refuse to run it.")
        if code == ENDLESS or code < 0:  # killed at one of its limits
            raise Damaged(f"{name} has a chat template that does not end within {CPU_S} s: every request would hang.")


def templates(folder: Path) -> list[str]:
    """Return the chat templates of a model, wherever its folder keeps them."""
    texts = [_text(folder / "chat_template.jinja")]
    for name in ("chat_template.json", "tokenizer_config.json"):
        with suppress(ValueError, RecursionError):
            texts += _named(config_json.mapping(json.loads(_text(folder / name) or "{}")).get("chat_template"))
    return [template for template in dict.fromkeys(texts) if template]


def _named(value: Any) -> list[str]:
    """Return the templates in a field: one, or several with names."""
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        return [config_json.string(config_json.mapping(entry).get("template")) for entry in entries]
    return [config_json.string(value)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _trial(template: str) -> int:
    """Render a template in a process of its own; return 0, or why it may not be used."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tasks.weights.chat_template", str(CPU_S)],
            input=template.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=WALL_S,
        )
    except subprocess.TimeoutExpired:
        return ENDLESS
    return done.returncode


def render(template: str) -> int:
    """Render a template as engines do; return 0, ENDLESS or ESCAPES. What it refuses by itself is no fault."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _as_json
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    names |= {"raise_exception": refuse, "strftime_now": time.strftime}
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    for trial in TRIALS:
        try:
            length = 0
            for piece in environment.from_string(plain).generate(**names, **trial):
                length += len(piece)
                if length > LONGEST:
                    return ENDLESS
        except (SecurityError, OverflowError, MemoryError, RecursionError) as problem:
            # the sandbox's range ends with OverflowError
            return ESCAPES if isinstance(problem, SecurityError) else ENDLESS
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            continue  # it wants another conversation, or names that a real tokenizer has
    return 0


def _as_json(value: Any, **_options: Any) -> str:
    return json.dumps(value)


def _limit(kind: int, limit: int) -> None:
    """Limit this process; macOS does not limit memory in this way."""
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    _limit(resource.RLIMIT_CPU, int(sys.argv[1]))
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    sys.exit(render(sys.stdin.buffer.read().decode("utf-8", "replace")))
