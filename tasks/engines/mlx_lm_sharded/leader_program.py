"""The program of an engine whose model is split over ranks: it starts them, ends them together, and is their door.

Run as `PYTHON -P leader_program.py FOLDER --port … --ranks N`; the key comes by MLXQ_TIER_KEY and no rank has it.
All ranks or none: where one ends, the others are killed and this process ends, so that what restarts it restarts all.
A rank ends with this process whatever becomes of it.

mlx_lm.server has no key, serves any folder that a request names, and two requests at once end JACCL (mlx-lm issue
1737): the door asks for the key, lets one request in at a time, and passes on the fields in FIELDS alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

sys.path.append(str(Path(__file__).parents[3]))

import httpx
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tasks.engines.asgi import cancelled_on_disconnect, locked
from tasks.engines.mlx_lm_sharded.answers import FIELDS, AnswerFold, Asked, NotServed, asked, is_usage, told
from tasks.system import own_log, ports

DRAIN_S = 4
"""Seconds a running answer has left after SIGTERM."""
HEARTBEAT_S = 5.0
"""A stream that waits or reads says so as often."""
RANK = Path(__file__).with_name("rank_program.py")
_GONE, _BAD = 499, 400


@dataclass(frozen=True)
class RankCommand:
    """How one rank is started."""

    argv: list[str]
    environment: dict[str, str]


@dataclass
class Ranks:
    """The processes that serve together."""

    commands: Sequence[RankCommand]
    processes: list[asyncio.subprocess.Process] = field(default_factory=list[Any])

    async def start(self) -> asyncio.Future[None]:
        """Start all of them, and return what is done once rank 0 serves.

        Each has the end of a pipe as its standard input, which ends with this process.
        """
        ready, says = os.pipe()
        for command in self.commands:
            process = await asyncio.create_subprocess_exec(
                *command.argv, env=command.environment, stdin=asyncio.subprocess.PIPE, stdout=says
            )
            self.processes.append(process)
        os.close(says)
        return self._follow(ready)

    def _follow(self, descriptor: int) -> asyncio.Future[None]:
        """Return what is done once rank 0 serves: its first byte. The other ranks get each one after it.

        By these, rank 0 says that there is a request while all are idle (rank_program.py).
        """
        loop = asyncio.get_running_loop()
        serves: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            signs = os.read(descriptor, 4096)
            if not signs:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            elif not serves.done():
                serves.set_result(None)
                signs = signs[1:]
            for process in self.processes[1:]:
                if signs and process.stdin:
                    process.stdin.write(signs)

        loop.add_reader(descriptor, read)
        return serves

    async def one_ended(self) -> int:
        """Wait until any rank ends, kill the others, and return its exit code, as a shell says it."""
        endings = [asyncio.ensure_future(process.wait()) for process in self.processes]
        done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        code = done.pop().result()
        await self.kill()
        return 128 - code if code < 0 else code

    async def kill(self) -> None:
        """Kill those that live, and see them gone."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
        for process in self.processes:
            await process.wait()


@dataclass
class Door:
    """What apps reach: one request at a time, asked of rank 0."""

    name: str
    longest: int
    """Tokens of an answer at most."""
    client: httpx.AsyncClient
    batchable: bool = True
    """Whether an answer can be stopped: of a model whose cache cannot be merged, each is read to its end."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: int = 0
    waiting: int = 0
    pumps: set[asyncio.Task[None]] = field(default_factory=set[Any])

    async def status(self) -> dict[str, Any]:
        """Return the state in the words of vllm-mlx's /v1/status, which tasks/plan/health.py reads."""
        work = orjson.loads((await self.client.get("/work")).content)
        phase = "prefill" if work["reading"] else "generation"
        return {
            "status": "running",
            "steps_executed": work["steps"],
            "num_running": self.running,
            "num_waiting": self.waiting,
            "total_requests_processed": work["requests"],
            "total_prompt_tokens": work["prompt_tokens"],
            "total_completion_tokens": work["completion_tokens"],
            "cache": {"tokens_saved": work["cached_tokens"]},
            "requests": [{"request_id": "running", "phase": phase}] * self.running,
        }

    @asynccontextmanager
    async def admitted(self) -> AsyncGenerator[None]:
        """Wait for the turn; first come, first served."""
        self.waiting += 1
        try:
            await self.turn.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.turn.release()

    def ask(self, path: str, request: Asked) -> AnswerStream:
        """Ask rank 0, and return what becomes of it."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(path, request, events))
        self.pumps.add(pump)
        pump.add_done_callback(self.pumps.discard)
        return AnswerStream(events, pump, stoppable=self.batchable)

    async def _pump(self, path: str, request: Asked, events: asyncio.Queue[Event]) -> None:
        """Put the events of the answer in `events` when it is its turn, and None at its end, or why it failed."""
        try:
            async with self.admitted(), self.client.stream("POST", path, json=request.body) as response:
                if response.is_error:
                    problem = NotServed(_reason(await response.aread()))
                    events.put_nowait(problem)
                    return
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        events.put_nowait(told(orjson.loads(line[6:]), request.model))
            events.put_nowait(None)
        except httpx.HTTPError:
            events.put_nowait(NotServed("The engine refused the request."))


def _reason(content: bytes) -> str:
    with suppress(orjson.JSONDecodeError, KeyError, TypeError):
        return str(orjson.loads(content)["error"])
    return "The engine refused the request."


Event = dict[str, Any] | NotServed | None


@dataclass
class AnswerStream:
    """An answer on its way."""

    events: asyncio.Queue[Event]
    pump: asyncio.Task[None]
    stoppable: bool

    def leave(self) -> None:
        """Stop the answer, as its client left."""
        if self.stoppable:
            self.pump.cancel()

    async def soon(self) -> Event | str:
        """Return the next event, or a comment of SSE where none comes within HEARTBEAT_S."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self.events.get(), HEARTBEAT_S)
        return ": heartbeat"

    async def lines(self, first: Event | str, *, usage: bool) -> AsyncIterator[str]:
        """Yield the lines of a stream that begins with `first`. `usage`: whether its counts are wanted."""
        event = first
        try:
            while event is not None:
                if isinstance(event, str):
                    yield f"{event}\n\n"
                elif isinstance(event, NotServed):
                    yield f"data: {json.dumps(_error(event))}\n\n"
                    return
                elif usage or not is_usage(event):
                    yield f"data: {orjson.dumps(event).decode()}\n\n"
                event = await self.soon()
            yield "data: [DONE]\n\n"
        finally:
            self.leave()

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer. Raises NotServed."""
        fold = AnswerFold()
        while True:
            event = await self.soon()
            if event is None:
                return fold.answer()
            if isinstance(event, NotServed):
                raise event
            if isinstance(event, dict):
                fold.add(event)


def _error(problem: NotServed) -> dict[str, Any]:
    return {"error": {"message": str(problem), "type": "invalid_request_error", "code": "invalid_request"}}


def application(door: Door, ranks: Ranks) -> Starlette:
    """Return the ASGI application of the door."""

    async def health(_: Request) -> Response:
        return _json({"status": "healthy"})

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [{"id": door.name, "object": "model", "owned_by": "mlxq"}]})

    async def status(_: Request) -> Response:
        return _json(await door.status())

    async def purge(_: Request) -> Response:
        await door.client.delete("/v1/cache")
        return _json({"status": "cleared"})

    async def ask(request: Request) -> Response:
        try:
            return await answer(door, request)
        except NotServed as problem:
            return _json(_error(problem), _BAD)
        except ClientDisconnect:
            return Response(status_code=_GONE)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await ranks.kill()

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/status", status),
            Route("/v1/cache", purge, methods=["DELETE"]),
            *(Route(path, ask, methods=["POST"]) for path in FIELDS),
        ],
        lifespan=lifespan,
    )


async def answer(door: Door, request: Request) -> Response:
    """Return the answer to a request. Raises NotServed, ClientDisconnect."""
    path = request.url.path
    wanted = asked(path, _parsed(await request.body()), door.name, door.longest)
    stream = door.ask(path, wanted)
    try:
        if not wanted.streams:
            return _json(await stream.whole())
        first = await stream.soon()
    except asyncio.CancelledError:
        stream.leave()
        raise
    if isinstance(first, NotServed):
        raise first
    return StreamingResponse(stream.lines(first, usage=wanted.wants_usage), media_type="text/event-stream")


def _parsed(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as problem:
        raise NotServed("The body is not JSON.") from problem


def _json(document: Any, code: int = 200) -> Response:
    return Response(orjson.dumps(document), code, media_type="application/json")


def main() -> None:
    """Serve one model until SIGTERM, or until the last answer after SIGUSR2, or until a rank ends."""
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    own_log.keep_of_service()
    chosen = _arguments()
    key = os.environ.pop("MLXQ_TIER_KEY", "")
    with private_folder(chosen.port) as folder:
        code = asyncio.run(serve(chosen, key, folder))
    end(code)


async def serve(chosen: argparse.Namespace, key: str, folder: Path) -> int:
    """Start the ranks, and serve as long as all of them live; return the exit code."""
    path = folder / "rank0"
    ranks = Ranks(commands(chosen, folder, path))
    ready = await ranks.start()
    ended = asyncio.create_task(ranks.one_ended())
    await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        return ended.result() or 1
    server = uvicorn.Server(
        uvicorn.Config(
            cast("Any", locked(cancelled_on_disconnect(application(await door_to(path, chosen), ranks)), key)),
            host="127.0.0.1",
            port=chosen.port,
            timeout_graceful_shutdown=DRAIN_S,
            log_config=None,
            access_log=False,
        )
    )
    signal.signal(signal.SIGUSR2, lambda _number, _frame: drain(server))
    serving = asyncio.create_task(server.serve())
    await asyncio.wait([serving, ended], return_when=asyncio.FIRST_COMPLETED)
    if ended.done() and not server.should_exit:
        end(ended.result() or 1)
    await serving
    return 0 if server.started else 1


def end(code: int) -> NoReturn:
    """End this process now, whatever it is answering: what a rank has left unfinished comes to no end."""
    sys.stderr.flush()
    os._exit(code)


async def door_to(path: Path, chosen: argparse.Namespace) -> Door:
    """Return the door to rank 0, which serves at `path`."""
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    client = httpx.AsyncClient(transport=transport, base_url="http://rank0", timeout=httpx.Timeout(None))
    work = orjson.loads((await client.get("/work")).content)
    return Door(chosen.name, chosen.longest, client, batchable=work["batchable"])


def drain(server: uvicorn.Server) -> None:
    """Take no more requests, and end with code 0 after the last answer, however long that takes."""
    server.config.timeout_graceful_shutdown = None
    server.should_exit = True


@contextmanager
def private_folder(port: int) -> Generator[Path]:
    """Yield a folder that only this user can enter, one for each port, so that a killed process leaves one at most.

    Not below the home: the path of a socket has 103 bytes at most on macOS. Raises PermissionError where another user
    has it.
    """
    folder = Path(tempfile.gettempdir(), f"mlxq-{os.getuid()}-{port}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commands(chosen: argparse.Namespace, folder: Path, path: Path) -> list[RankCommand]:
    """Return how each rank is started, as `mlx.launch` starts it on its own machine."""
    hosts = folder / "hosts.json"
    places = json.loads(chosen.places) or [{"address": "127.0.0.1", "through": []}] * chosen.ranks
    rank_ports = ports.spares(chosen.ranks)
    hosts.write_text(
        json.dumps([[f"{location['address']}:{port}"] for location, port in zip(places, rank_ports, strict=True)])
    )
    return [
        RankCommand(
            [
                *places[rank]["through"],
                *(sys.executable, "-P", str(RANK), chosen.folder, *(("--socket", str(path)) if rank == 0 else ())),
                *("--max-tokens", str(chosen.max_tokens), "--prefill-step", str(chosen.prefill_step)),
                *("--cache-bytes", str(chosen.cache_bytes // chosen.ranks)),
                *("--memory-bytes", str(chosen.memory_bytes // chosen.ranks)),
            ],
            {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        )
        for rank in range(chosen.ranks)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument(
        "--places", default="[]", help='JSON: each rank\'s {"address", "through": the command before it}'
    )
    parser.add_argument("--longest", type=int, required=True, help="tokens of an answer at most")
    parser.add_argument("--max-tokens", type=int, required=True, help="the same, where a request names none")
    parser.add_argument("--prefill-step", type=int, required=True)
    parser.add_argument("--cache-bytes", type=int, required=True, help="for old prompts, of all ranks together")
    parser.add_argument("--memory-bytes", type=int, default=0, help="what all ranks together may wire")
    return parser.parse_args()


if __name__ == "__main__":
    main()
