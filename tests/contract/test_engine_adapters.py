"""What every engine must do under mlxq, held against the real engines: one suite for all adapters."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support import hybrid_model, loopback, outbound
from support.engines import KEY, MIB, Engine, installation
from support.mlxq_home import until

from catalog.engines import Abilities, ModelKind, abilities, entry, every, reuses
from state.paths import Home
from tasks.engines import adapters, model_facts, reuse
from tasks.engines.base import Installation
from tasks.engines.mlx_lm_sharded import adapter as mlx_lm_sharded
from tasks.plan.exit_causes import explain
from tasks.supervision import probe
from tasks.system import process, prompt_cache
from tasks.system.process import How

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RESIDENT = {"vllm-mlx": 350 * MIB, "rapid-mlx": 400 * MIB, "mlx-lm-sharded": 120 * MIB}
SECRET = "my landlord is called Ferdinand"
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


@pytest.fixture(scope="session")
def models(builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: hybrid_model.make(name, root / name, builtin_model) for name in (*hybrid_model.NAMES, "thirds")}


TRIED = [*adapters.ENGINES, *([mlx_lm_sharded.NAME] if "SHARDED_ENGINE" in os.environ else [])]
"""Ranks that wait take a third of a core each, so the split model is tried here before a release alone."""


@pytest.fixture(scope="module", params=TRIED)
def at(request: pytest.FixtureRequest, shared_folder: Path) -> Installation:
    return installation(request.param, shared_folder / "engines")


@pytest.fixture(scope="module")
def able(at: Installation) -> Abilities:
    return abilities(at.engine, "cpu")


@pytest.fixture(scope="module")
def plain(at: Installation, models: dict[str, Path]) -> Path:
    """Return the smallest model that the engine can serve."""
    return models["thirds" if every()[at.engine].splits else "plain"]


@pytest.fixture(scope="module")
def engine(at: Installation, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Serve the smallest model: what it says does not matter here."""
    concurrency = 1 if every()[at.engine].splits else 4
    made = Engine(tmp_path_factory.mktemp("engine"), plain, at, concurrency=concurrency)
    made.start()
    yield made
    made.stop(1)


def test_it_serves_the_tier_by_its_name_and_wants_the_key(engine: Engine):
    assert probe.models(engine.port, KEY, 30) == {"fast"}
    assert probe.one_token(engine.port, KEY, "fast", 120) < 120
    assert engine.ask(max_tokens=4).json()["model"] == "fast"
    assert probe.ask(engine.port, "/v1/models", "wrong", 10).status == 401
    assert probe.ask(engine.port, "/v1/models", "", 10).status == 401


def test_without_the_key_it_answers_its_health_alone(engine: Engine):
    """Counts of requests and every route's description were open to all users of the machine."""
    paths = ("/metrics", "/docs", "/openapi.json", "/redoc", "/v1/models", "/v1/status", "/v1/cache/stats", "/nowhere")
    for path in (*paths, "/healthz", "/health/", "//health"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
            assert loopback.get(f"{engine.url}{path}", headers=headers).status_code == 401, path
    assert loopback.get(f"{engine.url}/health").status_code == 200
    assert loopback.get(f"{engine.url}/v1/models", headers=engine.headers).status_code == 200


def test_it_is_small(engine: Engine):
    """Without torch, which costs 750 MB an engine."""
    print(f"{engine.at.name}: start {engine.started_s:.1f} s, resident {engine.resident / MIB:.0f} MiB")

    assert engine.resident <= RESIDENT[engine.at.engine]
    maps = Path(f"/proc/{engine.identity.pid}/maps")
    assert not maps.exists() or "libtorch" not in maps.read_text()


def test_the_key_is_in_no_command_line_and_no_log(engine: Engine):
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, text=True, check=True)

    assert f"--port {engine.port}" in listing.stdout
    assert KEY not in listing.stdout
    assert KEY not in engine.log.read_text()


def test_what_users_write_stays_out_of_the_log(engine: Engine):
    """A request adds nothing at all to it, but a warning that an engine has once in its life."""
    engine.ask("A first request.", max_tokens=4)
    before = engine.log.read_text()
    engine.ask(SECRET, max_tokens=4)

    assert SECRET not in engine.log.read_text()
    assert engine.log.read_text() == before


def test_its_status_shows_progress(engine: Engine):
    """Steps and tokens grow while it works, and it is idle afterwards: what the watchdog judges by."""
    before = engine.status()
    engine.ask(max_tokens=8, temperature=0)
    after = engine.status()

    assert after.steps_executed > before.steps_executed
    assert after.completion_tokens >= before.completion_tokens + 4
    assert (after.num_running, after.num_waiting, after.loaded) == (0, 0, True)


def test_it_listens_on_loopback_alone(engine: Engine):
    listing = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    at = {line.split()[3] for line in listing.splitlines() if line.split()[3].endswith(f":{engine.port}")}

    assert at == {f"127.0.0.1:{engine.port}"}


def test_an_answer_over_the_limit_is_refused(engine: Engine):
    assert engine.ask(max_tokens=16_385).status_code in {400, 422}


def pieces(engine: Engine, **asked: Any) -> list[str]:
    """Return the words of a stream as they come: a token each, or more."""
    lines = engine.ask("Say hello.", **asked, stream=True).text.splitlines()
    choices = [choice for line in lines if line.startswith("data: {") for choice in json.loads(line[6:])["choices"]]
    return [text for choice in choices if (text := choice["delta"].get("content"))]


def test_stop_strings_are_as_the_catalog_says(engine: Engine, able: Abilities):
    """Greedy, the model says the same each time. The stop string begins inside one token and ends in the next."""
    asked = {"max_tokens": 32, "temperature": 0}
    words = pieces(engine, **asked)
    at = next(at for at, piece in enumerate(words[:-1]) if len(piece) > 1)
    stop = words[at][1:] + words[at + 1][0]
    whole = "".join(words)

    stopped = engine.ask("Say hello.", **asked, stop=[stop]).json()["choices"][0]["message"]["content"]
    streamed = "".join(pieces(engine, **asked, stop=[stop]))

    cut = whole[: whole.index(stop)].strip()
    assert ((stopped.strip(), streamed.strip()) == (cut, cut)) is able.stop_strings


def test_the_context_check_is_as_the_catalog_says(engine: Engine, able: Abilities):
    """An engine without one reads the prompt for minutes: it is not asked then, the gateway counts."""
    if not able.context_check:
        pytest.skip("the gateway counts for it")
    answer = engine.ask("word " * 9000, max_tokens=4)

    assert answer.status_code == 400
    assert "8192" in answer.text


def test_cached_tokens_are_told_as_the_catalog_says(engine: Engine, able: Abilities):
    talk = [{"role": "user", "content": "one two three " * 100}]
    engine.post("/v1/chat/completions", {"model": "fast", "messages": talk, "max_tokens": 2})
    talk += [{"role": "assistant", "content": "four"}, {"role": "user", "content": "and then?"}]
    usage = engine.post("/v1/chat/completions", {"model": "fast", "messages": talk, "max_tokens": 2}).json()["usage"]

    assert bool((usage.get("prompt_tokens_details") or {}).get("cached_tokens")) is able.cached_tokens


def test_the_limit_under_another_name_is_as_the_catalog_says(engine: Engine, able: Abilities):
    """An engine that does not know it goes on and on: its stream is left after a few tokens more."""
    wanted = engine.body("Say hello.", max_completion_tokens=3, temperature=0, stream=True)
    with loopback.stream(
        "POST", f"{engine.url}/v1/chat/completions", json=wanted, headers=engine.headers, timeout=120
    ) as answer:
        lines = [line for line, _ in zip(answer.iter_lines(), range(40), strict=False) if line]

    assert (lines[-1] == "data: [DONE]") is able.max_completion_tokens
    assert sum('"content"' in line for line in lines) > 0


def test_it_drops_its_cache_when_told(engine: Engine):
    probe.purge(engine.port, KEY, 30, release=engine.at.name)
    before = engine.status().cached_tokens
    engine.ask("one two three " * 100, max_tokens=2)

    assert engine.status().cached_tokens - before < 50


def test_a_client_that_closes_frees_the_slot(engine: Engine):
    """A random model ends its answer at any token, but where it takes the likeliest."""
    wanted = engine.body("Tell a very long story.", max_tokens=2000, stream=True, temperature=0)
    with loopback.stream(
        "POST", f"{engine.url}/v1/chat/completions", json=wanted, headers=engine.headers, timeout=120
    ) as answer:
        lines = answer.iter_lines()  # its end would close the connection
        next(line for line in lines if "content" in line)
        _await_running(engine, 1)
    _await_running(engine, 0)


def test_a_client_that_leaves_before_its_answer_frees_the_slot_at_once(engine: Engine):
    """An answer that is not streamed went on for half a second, a hundred steps, beside the next request's prompt."""
    steps = [_steps_after_leaving(engine) for _ in range(4)]
    print(f"{engine.at.name}: {steps} steps")

    assert min(steps) < 30


def _steps_after_leaving(engine: Engine) -> int:
    """Return the steps from a client's leaving to the end of its request."""
    body = json.dumps(engine.body("Tell a very long story.", max_tokens=4000, temperature=0)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{engine.port}\r\nContent-Length: {len(body)}\r\n"
    headers = {"Content-Type": "application/json", **engine.headers}
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", engine.port)) as client:
        client.sendall(f"{head}{more}\r\n".encode() + body)
        until(lambda: engine.status().num_running == 1)
        before = engine.status().steps_executed
    until(lambda: engine.status().num_running == 0)
    return engine.status().steps_executed - before


def test_a_stream_that_waits_is_not_silent(engine: Engine, able: Abilities):
    """The slots are full of long answers. A healthy stream was broken off as its engine said nothing for 20 s."""
    asked = {"json": engine.body("Tell a story.", max_tokens=4000, stream=True, temperature=0)}
    url, headers = f"{engine.url}/v1/chat/completions", engine.headers
    with ExitStack() as streams:
        for _ in range(engine.concurrency):
            streams.enter_context(loopback.stream("POST", url, **asked, headers=headers, timeout=120))
        _await_running(engine, engine.concurrency)
        waiting = streams.enter_context(
            loopback.stream("POST", url, **asked, headers=headers, timeout=able.silence_s / 2)
        )
        beats = (line for line in waiting.iter_lines() if line.startswith(":"))
        assert len([next(beats), next(beats)]) == 2  # one may come at once
    _await_running(engine, 0)


def _await_running(engine: Engine, count: int) -> None:
    deadline = time.monotonic() + 60
    while engine.status().num_running != count:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _stream(engine: Engine, flowing: threading.Event, ended: list[str]) -> None:
    wanted = engine.body("Tell a very long story.", max_tokens=4000, stream=True, temperature=0)
    try:
        with loopback.stream(
            "POST", f"{engine.url}/v1/chat/completions", json=wanted, headers=engine.headers, timeout=120
        ) as answer:
            for line in answer.iter_lines():
                if '"content"' in line:
                    flowing.set()
                ended[:] = [line or ended[-1] if ended else line]
    except httpx.TransportError:
        return


@dataclass(frozen=True)
class Tunings:
    """What an engine offers for the plain model: each is served by a test that starts an engine anyway.

    An engine refuses a flag that it does not know. Random weights say otherwise with a coarser cache.
    """

    names: Sequence[str]

    def __post_init__(self) -> None:
        assert len(self.names) <= 3, "a test more has to take a tuning"

    def at(self, number: int) -> str:
        """Return one by its number; nothing where there are fewer."""
        return dict(enumerate(self.names)).get(number, "")


@pytest.fixture(scope="module")
def tunings(at: Installation, plain: Path) -> Tunings:
    return Tunings(list(adapters.named(at.engine).tunings(model_facts.read(plain))))


def hello(engine: Engine) -> str:
    """Return a greedy answer of a few tokens."""
    answer = engine.ask("Say it again and again.", max_tokens=24, temperature=0).json()
    return answer["choices"][0]["message"]["content"]


def test_its_end_has_a_bound(at: Installation, plain: Path, engine: Engine, tunings: Tunings, tmp_path: Path):
    """A 4000-token answer would hold it for minutes; the limit here is for a slow machine."""
    as_it_is, tuning = hello(engine), tunings.at(1)
    engine = Engine(tmp_path, plain, at, tuning=tuning)
    engine.start()
    assert hello(engine) == as_it_is or tuning.startswith("kv-"), tuning
    flowing = threading.Event()
    reader = threading.Thread(target=_stream, args=(engine, flowing, []))
    reader.start()
    assert flowing.wait(120)
    stopped = engine.stop()
    reader.join(10)
    print(f"{at.name}: ended in {stopped.seconds:.1f} s")

    assert stopped.outcome == How.ASKED
    assert engine.exit_code() == 143


def check_reuse(engine: Engine, kind: ModelKind) -> None:
    """Hold what an engine does not read again, also after a planned restart, against the catalog.

    Thinking is left to the engine's default, and the client sends no thoughts back.
    """
    share = reuse.share(engine.port, KEY, "fast", engine.at.name, tokens=480)
    after = after_restart(engine) if kind in entry(engine.at.engine).disk_cache else None
    print(f"{engine.at.name}, {kind}: {share:.0%} of the first turn not read again, {after} after a planned restart")

    assert model_facts.read(engine.weights).kind == kind
    assert (share >= 0.95) is reuses(engine.at.engine, kind)
    assert after is None or after >= 0.9


@pytest.mark.parametrize("name", ["hybrid", "vision"])
def test_reuse_is_as_the_catalog_says(at: Installation, models: dict[str, Path], tmp_path: Path, name: str):
    """Of two of the three families; the third is the plain model, below."""
    if name == "vision" and every()[at.engine].splits:
        pytest.skip("it takes no images")
    engine = Engine(tmp_path, models[name], at, context=4096, ranks=2, more={"vision": name == "vision"})
    engine.start()
    check_reuse(engine, ModelKind.HYBRID_VISION if name == "vision" else ModelKind.HYBRID)
    seen = [said_of(engine, color) for color in ("red", "blue", "red")] if name == "vision" else ["a", "b", "a"]
    engine.stop()

    assert seen[0] == seen[2] != seen[1], "what random weights say of an image differs with what they see"


def test_a_plain_model_is_read_once_kept_on_disk_and_drained(
    at: Installation, plain: Path, engine: Engine, tunings: Tunings, tmp_path: Path
):
    """Three starts of one home: as it is, after a planned restart, and with a tuning."""
    as_it_is, tuning = hello(engine), tunings.at(0)
    engine = Engine(tmp_path, plain, at, context=4096)
    engine.start()
    check_reuse(engine, ModelKind.ATTENTION)
    mark = check_disk(engine) if entry(at.engine).disk_cache else tmp_path / "none"
    engine.stop()
    engine.tuning = tuning
    engine.start()
    assert hello(engine) == as_it_is or tuning.startswith("kv-"), tuning
    until(lambda: not mark.exists())
    check_drain(engine)


def check_disk(engine: Engine) -> Path:
    """Stop an engine that was stopped once before, and hold what it kept of prompts against what mlxq promises.

    It holds what users wrote, so that it must be where mlxq can purge it, only its owner can read it, and nothing of a
    key with --no-store is in it. Returns the mark that keeps such prompts out, which the next start removes.
    """
    folder = engine.home / "cache" / "fast"
    saved = [file for file in folder.rglob("*") if file.is_file()]
    index = next(file for file in saved if file.name == "index.json")
    assert json.loads(index.read_text())
    assert all(file.stat().st_mode & 0o077 == 0 for file in saved)
    written = index.stat().st_mtime_ns
    prompt_cache.keep_out(Home(engine.home), "fast")
    engine.ask("private " * 300, max_tokens=2)
    engine.stop()
    assert index.stat().st_mtime_ns == written, "nothing of a key with --no-store"
    assert (folder / prompt_cache.NO_STORE).exists()
    return folder / prompt_cache.NO_STORE


def check_drain(engine: Engine) -> None:
    """Drain an engine that answers: it waits for the last answer, and ends with zero."""
    wanted = engine.body("Tell a story.", max_tokens=80, stream=True, temperature=0)
    url, lines, told = f"{engine.url}/v1/chat/completions", [""], False
    with loopback.stream("POST", url, json=wanted, headers=engine.headers, timeout=240) as answer:
        for line in answer.iter_lines():
            if '"content"' in line and not told:
                told = True
                engine.drain()
            if line:
                lines.append(line)

    assert lines[-1] == "data: [DONE]"
    assert process.wait(engine.identity, 60)
    assert engine.exit_code() == 0


def said_of(engine: Engine, color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    asked = {"max_tokens": 3, "temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    part = {"type": "image_url", "image_url": {"url": url}}
    answer = engine.post(
        "/v1/chat/completions", engine.body("", **asked) | {"messages": [{"role": "user", "content": [part]}]}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def after_restart(engine: Engine) -> float:
    """Return the share of a first turn that the second one does not read again on a new process."""
    talk = [{"role": "user", "content": "Check each of the files before you write. " * 60}]
    asked = {"model": "fast", "max_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}}
    first = engine.post("/v1/chat/completions", {**asked, "messages": talk}).json()["usage"]["prompt_tokens"]
    engine.stop()
    engine.start()
    until(lambda: _loaded(engine), 30)
    talk += [{"role": "assistant", "content": "I did."}, {"role": "user", "content": "And then?"}]
    before = engine.status().cached_tokens
    assert engine.post("/v1/chat/completions", {**asked, "messages": talk}).status_code == 200
    return (engine.status().cached_tokens - before) / first


def _loaded(engine: Engine) -> bool:
    """Return whether the engine has read what it kept; one does so after it has begun to serve."""
    cache = loopback.get(f"{engine.url}/v1/status", headers=engine.headers, timeout=30).json()["cache"]
    return "hits" in cache and cache.get("entry_count", 1) > 0


def _broken(how: str, weights: Path, folder: Path) -> Path:
    shutil.copytree(weights, folder)
    if how == "cut":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "empty":
        (folder / "model.safetensors").unlink()
    elif how == "unknown":
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "mamba9"}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("how", "code"), [("cut", "damaged"), ("empty", "weights_missing"), ("unknown", "unsupported")]
)
def test_its_last_words_are_understood(at: Installation, plain: Path, tmp_path: Path, how: str, code: str):
    engine = Engine(tmp_path / "home", _broken(how, plain, tmp_path / how), at)
    engine.spawn()
    assert process.wait(engine.identity, 240)
    cause = explain(engine.exit_code(), engine.log.read_text(), "fast", adapters.rules(at.name))

    assert (cause.code, cause.permanent) == (code, True)


def test_nothing_leaves_the_machine(at: Installation, plain: Path, tunings: Tunings, tmp_path: Path):
    """In a network namespace that has loopback alone it starts and answers; every look-up is seen by strace."""
    if not outbound.can_be_seen():
        pytest.skip("this system allows no network namespace, or has no strace")
    engine = Engine(tmp_path, plain, at, tuning=tunings.at(2))

    assert outbound.calls(engine.launch(), engine.url, outbound.CHAT, engine.body(max_tokens=3), tmp_path) == []
