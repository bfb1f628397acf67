"""The whole stack, as a user has it after one command: an engine, a gateway, a page; and what they live through."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hybrid_model, loopback
from support.user import QUESTION, User

from state import keys, secrets
from tasks.system import process

NAMES = ["standard", "gateway", "page"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, builtin_model: Path) -> Iterator[User]:
    """Give a person who has run `mlxq setup --accept-defaults` once; the model was on the disk already.

    In its place there is a small one of random weights: tests/first_light has the answer of the real one.
    """
    person = User(tmp_path_factory.mktemp("first") / "home")
    models = tmp_path_factory.mktemp("models")
    hybrid_model.make_builtin(models, builtin_model)
    person.run("config", "set", "model-dir", str(models))
    person.run("config", "set", "tier-defaults", "longctx.max-tokens=8")  # it ends no answer by itself
    said = person.run("setup", "--accept-defaults")
    assert f"http://127.0.0.1:{person.gateway}/v1" in said
    assert str(person.home.secrets) in said
    yield person
    person.leave()


def test_setup_ends_with_three_healthy_services(user: User) -> None:
    report = user.status()

    assert report["schema_version"] == 1
    assert [each["name"] for each in report["services"]] == NAMES
    assert {each["state"] for each in report["services"]} == {"healthy"}
    assert all(each["memory_mb"] <= 350 for each in report["services"] if each["kind"] == "engine")
    assert all(each["memory_mb"] <= 60 for each in report["services"] if each["kind"] == "page")


def test_setup_again_pulls_and_restarts_nothing(user: User) -> None:
    before = {name: each["pid"] for name, each in user.services().items()}

    user.run("setup", "--accept-defaults")

    assert {name: each["pid"] for name, each in user.services().items()} == before


def test_every_tier_is_answered_by_the_one_engine(user: User) -> None:
    assert user.run("chat", "--tier", "longctx", QUESTION).strip()
    assert [answering(user, tier) for tier in ("standard", "fast", "longctx")] == ["standard", "fast", "longctx"]


def answering(user: User, tier: str) -> str:
    """Return the tier that answers a request of one token."""
    key = secrets.read(user.home.secrets)[secrets.MASTER]
    messages = [{"role": role, "content": "Hi"} for role in ("system", "user")]
    body = {"model": tier, "max_tokens": 1, "messages": messages}
    url, headers = f"http://127.0.0.1:{user.gateway}/v1/chat/completions", {"authorization": f"Bearer {key}"}
    answer = loopback.post(url, json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-mlxq-tier"]


def test_a_dead_engine_comes_back(user: User) -> None:
    was = user.services()["standard"]["pid"]
    os.kill(was, signal.SIGKILL)

    user.run("up", "--tier", "fast")
    assert answering(user, "fast") == "fast"

    now = user.services()["standard"]
    assert now["state"] == "healthy"
    assert now["pid"] != was
    assert now["restarts"] == 1


def test_no_key_is_in_a_command_line_a_log_or_a_row(user: User) -> None:
    keys = [line.partition("=")[2] for line in user.home.secrets.read_text().splitlines() if "=" in line]
    lines = [Path(f"/proc/{each['pid']}/cmdline").read_text() for each in user.services().values()]
    written = [file.read_bytes() for file in (*user.home.logs.iterdir(), user.home.database)]

    assert keys
    assert not [key for key in keys if any(key in line for line in lines)]
    assert not [key for key in keys if any(key.encode() in text for text in written)]


def test_files_are_the_persons_alone(user: User) -> None:
    for file in (user.home.root, *user.home.root.rglob("*")):
        if not file.is_symlink():
            assert file.stat().st_mode & 0o077 == 0, file


def test_down_leaves_no_process_and_no_port_and_up_works_at_once(user: User) -> None:
    pids = [each["pid"] for each in user.services().values()]

    user.run("down")

    assert not [pid for pid in pids if process.identify(pid)]
    assert {each["state"] for each in user.services().values()} == {"stopped"}
    user.run("chat", "hello", code=3)
    user.run("up")
    assert {each["state"] for each in user.services().values()} == {"healthy"}


def test_connect_gives_what_a_shell_evaluates(user: User) -> None:
    said = user.run("connect", "env")

    assert re.search(rf"export OPENAI_BASE_URL=\S*:{user.gateway}/v1", said)
    key = re.search(r"export OPENAI_API_KEY=(\S+)", said)
    assert key
    assert key[1] != secrets.read(user.home.secrets)[secrets.MASTER]
    assert keys.read(keys.file(user.home))[keys.digest(key[1])].name == "env"
    headers = {"authorization": f"Bearer {key[1]}"}
    assert loopback.get(f"http://127.0.0.1:{user.gateway}/v1/models", headers=headers).status_code == 200
