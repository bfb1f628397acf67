"""The child that measures: it starts an engine of its own unless one serves, and asks it.

The engine stays in this process's group, which the parent ends whatever happens: none is left behind.
"""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from state.errors import EngineFailed, MlxqError, PortTaken
from state.metrics.bench import Round
from tasks.engines import adapters, reuse, timed_completion
from tasks.plan import bench, exit_causes
from tasks.plan.bench import TimedAnswer
from tasks.supervision import probe
from tasks.system import ports, process
from tasks.system.child import Report, answer

READY_LOOK_S = 0.2
SAMPLE_S = 0.25
STOP_S = 10.0
PORTS = 5
"""How many ports are tried before an engine fails to start, each taken by another program in the meantime."""
TRIES = 3
"""So often a round is asked again when its answers ended at once."""
TOKEN_S = 300.0
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Measure and give {"rounds", "peak_bytes", "tools", "reused"}; `request` is made by tasks/bench.py."""
    if request["argv"] is None:
        return _measured(request, request["pid"], report)
    report({"phase": "starting an engine"})
    with own_engine(request) as engine:
        return _measured(request, engine.pid, report)


@dataclass(frozen=True)
class OwnEngine:
    """An engine process that answers."""

    pid: int
    start_s: float
    """Seconds until its first token was there."""
    first_token_s: float
    """Seconds of these that the request for it took."""


@contextmanager
def own_engine(request: dict[str, Any]) -> Generator[OwnEngine]:
    """Start an engine, return it once it has answered, and end it afterwards.

    Nothing holds its port for it. Where another program was quicker, the engine is started at another port, which
    `request` then has. Raises EngineFailed, PortTaken.
    """
    began = time.monotonic()
    engine = _started(request)
    try:
        token_s = _first_token(request)
        yield OwnEngine(engine.pid, time.monotonic() - began, token_s)
    except EngineFailed as problem:
        raise (_ended(request, engine) or problem) from problem
    finally:
        _end(engine)


def _started(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Return an engine that listens, at the first of PORTS ports that is left to it. Raises EngineFailed, PortTaken."""
    for _ in range(PORTS - 1):
        with suppress(PortTaken):
            return _start(request)
        request.update(_elsewhere(request))
    return _start(request)


def _start(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Return an engine that listens; one that fails is ended. Raises EngineFailed, PortTaken."""
    with Path(request["log"]).open("wb") as log:
        engine = subprocess.Popen(
            request["argv"], env=request["environment"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _until_listening(request, engine)
    except MlxqError:
        _end(engine)
        raise
    return engine


def _elsewhere(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the port and the command line of the same engine at a port that is free now."""
    port, argv = ports.spare(), list(request["argv"])
    argv[argv.index("--port") + 1] = str(port)
    return {"port": port, "argv": argv}


def _end(engine: subprocess.Popen[bytes]) -> None:
    engine.terminate()
    try:
        engine.wait(STOP_S)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()


def _until_listening(request: dict[str, Any], engine: subprocess.Popen[bytes]) -> None:
    """Wait until the engine listens. Another program at its port must be sent no key.

    Raises EngineFailed with the cause when the engine ends or takes too long, PortTaken.
    """
    until = time.monotonic() + request["start_limit_s"]
    while not probe.listening(request["port"]):
        if problem := _ended(request, engine):
            raise problem
        if time.monotonic() > until:
            raise EngineFailed(f"The engine was not ready within {request['start_limit_s']:.0f} s.")
    identity = process.identify(engine.pid)
    if identity is None or ports.taken_from(request["port"], identity):
        raise PortTaken(f"Port {request['port']} is taken by another program.", hint="mlxq doctor")


def _first_token(request: dict[str, Any]) -> float:
    """Return the seconds that the first token took. Raises EngineFailed."""
    limit_s, messages = request.get("token_limit_s", TOKEN_S), request.get("hello", probe.HI)
    return probe.one_token(request["port"], request["key"], request["name"], limit_s, messages)


def _ended(request: dict[str, Any], engine: subprocess.Popen[bytes]) -> MlxqError | None:
    """Return why an engine ended; None while it runs. A connection that breaks comes a moment before its end."""
    try:
        code = engine.wait(READY_LOOK_S)
    except subprocess.TimeoutExpired:
        return None
    words = Path(request["log"]).read_text(encoding="utf-8", errors="replace")
    cause = exit_causes.explain(128 - code if code < 0 else code, words, "bench", adapters.rules(request["release"]))
    failed = PortTaken if cause.code == PortTaken.code else EngineFailed
    return failed(cause.sentence, hint=f"tail {request['log']}")


def _measured(request: dict[str, Any], pid: int, report: Report) -> dict[str, Any]:
    with peak(request, pid) as most:
        report({"phase": "warming up"})
        _ask(request, 1)
        rounds = [_round(request, number, report) for number in request["concurrency"]]
        report({"phase": "calling a tool"})
        tools = _tools(request) if request["tools"] else None
        report({"phase": "asking a second turn"})
        reused = reuse.share(request["port"], request["key"], request["name"], request["release"])
    figures = {"peak_bytes": most["bytes"], "tools": tools, "reused": reused}
    return figures | {"rounds": [asdict(result) for result in rounds]}


def _round(request: dict[str, Any], concurrency: int, report: Report) -> Round:
    """Run one number of requests side by side as often as asked. Raises EngineFailed when no answer is of use."""
    answers: list[TimedAnswer] = []
    walls: list[float] = []
    for number in range(request["runs"] * TRIES):
        if len(walls) == request["runs"]:
            break
        report({"phase": f"{concurrency} at once, run {len(walls) + 1} of {request['runs']}", "number": number})
        began = time.perf_counter()
        usable = bench.usable(_ask(request, concurrency))
        if len(usable) == concurrency:
            answers += usable
            walls.append(time.perf_counter() - began)
    if not walls:
        raise EngineFailed(f"The model ends its answers before {bench.FEWEST_TOKENS} tokens; there is nothing to time.")
    return bench.summarize(concurrency, answers, walls)


def _ask(request: dict[str, Any], concurrency: int) -> list[TimedAnswer]:
    """Send requests side by side, each with a prompt of its own."""

    def one(_: int) -> TimedAnswer:
        text = bench.prompt(request["prompt_tokens"], uuid.uuid4().hex)
        return timed_completion.timed(request["port"], request["key"], request["name"], text, request["gen_tokens"])

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(concurrency)))


def _tools(request: dict[str, Any]) -> bool:
    """Return whether the engine reads a tool call out of what the model writes."""
    wanted = {
        "model": request["name"],
        "messages": [{"role": "user", "content": "What is the weather in Paris? Use the tool."}],
        "tools": [TOOL],
        "max_tokens": bench.TOOL_TOKENS,
        "temperature": 0,
    }
    response = probe.ask(request["port"], "/v1/chat/completions", request["key"], TOKEN_S, wanted)
    return response.status == 200 and _called(response.body)  # noqa: PLR2004 (HTTP's OK)


def _called(body: dict[str, Any]) -> bool:
    calls: Sequence[dict[str, Any]] = body["choices"][0]["message"].get("tool_calls") or []
    return any(
        call["function"]["name"] == "get_weather" and "paris" in call["function"]["arguments"].lower() for call in calls
    )


@contextmanager
def peak(request: dict[str, Any], pid: int) -> Generator[dict[str, int]]:
    """Watch the engine's memory meanwhile: resident bytes, or what Metal holds where that is more."""
    most, done = {"bytes": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            most["bytes"] = max(most["bytes"], resident(pid), _metal(request))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def resident(pid: int) -> int:
    """Return the resident bytes of a process; 0 when it is gone."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _metal(request: dict[str, Any]) -> int:
    try:
        return probe.status(request["port"], request["key"], release=request["release"]).metal_bytes or 0
    except EngineFailed:
        return 0


if __name__ == "__main__":
    answer(work)
