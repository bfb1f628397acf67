"""Programs of npm and PyPI, set up by `mlxq connect`'s own words, through the real gateway.

The engines behind it are scripted, so that a model calls the tool that the test wants.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.gateway import Gateway
from support.npm import Person, installed, large
from support.scripted import ScriptedEngine, script

from mlxq.clients.client import Target
from state.stack import as_tiers

pytestmark = pytest.mark.slow
Engines = dict[str, ScriptedEngine]


@pytest.fixture(scope="module")
def claude(pytestconfig: pytest.Config) -> str:
    return installed("claude", pytestconfig)


@pytest.fixture(scope="module")
def codex(pytestconfig: pytest.Config) -> str:
    return installed("codex", pytestconfig)


@pytest.fixture(scope="module")
def opencode(pytestconfig: pytest.Config) -> str:
    return installed("opencode", pytestconfig)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person.make(tmp_path)


@pytest.fixture
def target(front: Gateway, engines: dict[str, ScriptedEngine]) -> Target:
    return Target(
        front.url, front.secrets["LITELLM_MASTER_KEY"], as_tiers(engine.tier() for engine in engines.values())
    )


def claude_said(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def test_claude_code_answers(claude: str, person: Person, target: Target, engines: dict[str, ScriptedEngine]):
    person.connect("claude-code", target)
    said = claude_said(person.run(claude, "-p", script(text="It is forty two."), "--output-format", "json"))
    assert (said["result"], said["is_error"]) == ("It is forty two.", False)
    assert engines["standard"].seen(), "the work is the main tier's"


def test_claude_code_thinks(claude: str, person: Person, target: Target):
    """With a thinking budget Claude Code asks for `thinking`, which must fail nobody."""
    person.connect("claude-code", target)
    order = script(text="Forty two.", thinking="Six times seven.")
    said = claude_said(person.run(claude, "-p", order, "--output-format", "json", MAX_THINKING_TOKENS="2000"))
    assert (said["result"], said["is_error"]) == ("Forty two.", False)


def test_claude_code_runs_a_tool(claude: str, person: Person, target: Target):
    person.connect("claude-code", target)
    order = script(tool="Bash", arguments={"command": "echo made > made.txt", "description": "make"}, text="Done.")
    said = claude_said(
        person.run(claude, "-p", order, "--output-format", "json", "--allowedTools", "Bash(echo:*)", "Bash")
    )
    assert (said["result"], said["num_turns"]) == ("Done.", 2)
    assert (person.work / "made.txt").read_text() == "made\n"


def codex_events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def codex_run(codex: str, person: Person, order: str) -> list[dict[str, Any]]:
    argv = ["exec", "--profile", "mlxq", "--json", "--skip-git-repo-check"]
    argv += ["--dangerously-bypass-approvals-and-sandbox", "-c", "check_for_update_on_startup=false"]
    return codex_events(person.run(codex, *argv, order))


def messages(events: list[dict[str, Any]]) -> list[str]:
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item["text"] for item in items if item["type"] == "agent_message"]


def test_codex_answers(codex: str, person: Person, target: Target, engines: dict[str, ScriptedEngine]):
    person.connect("codex", target)
    events = codex_run(codex, person, script(text="It is forty two."))
    assert messages(events) == ["It is forty two."]
    assert [event["usage"]["input_tokens"] for event in events if event["type"] == "turn.completed"] == [7]
    assert engines["standard"].seen()


def test_codex_runs_a_command(codex: str, person: Person, target: Target, engines: dict[str, ScriptedEngine]):
    person.connect("codex", target)
    order = script(tool="exec_command", arguments={"cmd": "echo made > made.txt"}, text="Done.")
    events = codex_run(codex, person, order)
    assert messages(events) == ["Done."], [sorted(request["body"]) for request in engines["standard"].seen()]
    assert (person.work / "made.txt").read_text() == "made\n"


def opencode_run(opencode: str, person: Person, order: str) -> list[dict[str, Any]]:
    """Give the prompt on standard input, as OpenCode puts quotes into one with spaces."""
    done = person.run(opencode, "run", "--format", "json", typed=order)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def spoken(events: list[dict[str, Any]]) -> list[str]:
    return [event["part"]["text"] for event in events if event["type"] == "text"]


def test_opencode_runs_a_tool_and_answers(opencode: str, person: Person, target: Target):
    person.connect("opencode", target)
    order = script(tool="bash", arguments={"command": "echo made > made.txt", "description": "make"}, text="Done.")
    events = opencode_run(opencode, person, order)
    assert spoken(events)[-1:] == ["Done."]
    assert (person.work / "made.txt").read_text() == "made\n"


def test_qwen_code_answers(pytestconfig: pytest.Config, person: Person, target: Target, engines: Engines):
    person.connect("qwen-code", target)
    done = person.run(installed("qwen", pytestconfig), "-p", script(text="It is forty two."))
    assert done.stdout.strip().endswith("It is forty two."), done.stdout[-2000:] + done.stderr[-2000:]
    assert engines["standard"].seen(), "the work is the main tier's"


def test_pi_answers(pytestconfig: pytest.Config, person: Person, target: Target, engines: Engines):
    person.connect("pi", target)
    argv = ["--provider", "mlxq", "--model", "standard", "--no-session", "-p", script(text="It is forty two.")]
    done = person.run(installed("pi", pytestconfig), *argv)
    assert done.stdout.strip().endswith("It is forty two."), done.stdout[-2000:] + done.stderr[-2000:]
    assert engines["standard"].seen(), "the work is the main tier's"


def test_cline_answers(pytestconfig: pytest.Config, person: Person, target: Target, engines: Engines):
    person.connect("cline", target)
    done = person.run(installed("cline", pytestconfig), "--json", script(text="It is forty two."))
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["text"] for line in lines if line["type"] == "run_result"] == ["It is forty two."], done.stderr[-2000:]
    assert engines["standard"].seen(), "the work is the main tier's"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("program", "argv"),
    [
        ("hermes", ["-z"]),
        ("openclaw", ["agent", "--local", "--agent", "main", "-m"]),
        ("goose", ["run", "--no-session", "--provider", "custom_mlxq", "--model", "standard", "--text"]),
        ("aider", ["--yes-always", "--no-check-update", "--analytics-disable", "--no-stream", "--message"]),
    ],
)
def test_a_large_program_answers(
    request: pytest.FixtureRequest, person: Person, target: Target, program: str, argv: list[str]
):
    path, searched = large(program, request.config)
    engines: Engines = request.getfixturevalue("engines")
    person.connect(program, target)
    done = person.run(path, *argv, script(text="It is forty two."), PATH=searched)
    assert "It is forty two." in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert engines["standard"].seen(), "the work is the main tier's"
