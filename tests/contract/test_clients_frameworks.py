"""LangChain, pydantic-ai and instructor through the real gateway; uv brings them into an environment of their own.

One process runs all of tests/support/frameworks.py, as their imports cost seconds; each test reads one result.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.gateway import Gateway
from support.scripted import ScriptedEngine

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "support" / "frameworks.py"
PACKAGES = (
    "langchain-openai==1.7.4",
    "langchain-anthropic==1.7.10",
    "pydantic-ai-slim[openai,anthropic]==2.38.0",
    "instructor==1.17.0",
    "anthropic==1.17.0",  # pydantic-ai 2.38.0 breaks with 2.x: "Cannot instantiate typing.Union"
)
LIMIT_S = 240
PERSON = {"name": "Ada", "age": 36}
LOOP = {"arguments": {"city": "Oslo"}, "then": "It is cold."}
RESULTS = {
    "langchain_openai_answers": ["a b c", "a b c"],
    "langchain_openai_tools": LOOP,
    "langchain_openai_responses": ["a b c", LOOP],
    "langchain_openai_schema": PERSON,
    "langchain_anthropic_answers": ["a b c", "a b c"],
    "langchain_anthropic_thinks": ["four", ["thinking", "text"]],
    "langchain_anthropic_tools": LOOP,
    "pydantic_ai_chat": "It is cold.",
    "pydantic_ai_responses": "It is cold.",
    "pydantic_ai_anthropic": "It is cold.",
    "instructor_json_schema": PERSON,
    "instructor_tools": PERSON,
}


@pytest.fixture(scope="module")
def ran(front: Gateway, every_engine: dict[str, ScriptedEngine]) -> dict[str, Any]:
    """Return what each framework said, and what the engine was asked."""
    if not shutil.which("uv"):
        pytest.skip("there is no uv here")
    env = {name: value for name, value in os.environ.items() if name not in {"UV_FROZEN", "VIRTUAL_ENV"}}
    argv = ["uv", "run", "--quiet", "--no-project", "--python", sys.executable]
    argv += [word for package in PACKAGES for word in ("--with", package)]
    if (made := subprocess.run([*argv, "true"], env=env, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"the frameworks do not install: {made.stderr.strip()[-200:]}")
    every_engine["standard"].forget()
    program = ["python", str(PROGRAM), front.url, front.secrets["LITELLM_MASTER_KEY"]]
    done = subprocess.run([*argv, *program], env=env, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    bodies = [request["body"] for request in every_engine["standard"].seen()]
    return {"said": json.loads(done.stdout.splitlines()[-1]), "bodies": bodies}


@pytest.mark.parametrize("name", RESULTS)
def test_a_framework_gets_what_it_asked_for(ran: dict[str, Any], name: str):
    assert ran["said"][name] == RESULTS[name]


def test_every_function_has_its_test(ran: dict[str, Any]):
    assert set(ran["said"]) == set(RESULTS)


def test_a_frameworks_limit_reaches_the_engine(ran: dict[str, Any]):
    """langchain-openai and pydantic-ai send max_completion_tokens; vllm-mlx reads max_tokens alone."""
    limits = {body.get("max_tokens") for body in ran["bodies"]}
    assert {3, 300} <= limits
