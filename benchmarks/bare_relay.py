"""The least that a gateway can be, for comparison: aiohttp's server and client, no checks, no second tier.

`python bare_relay.py PORT UPSTREAM_URL`. What mlxq's gateway costs beyond this is the price of its checks.
"""

from __future__ import annotations

import sys

import aiohttp
from aiohttp import web


async def relay(request: web.Request) -> web.StreamResponse:
    """Send a request on and its answer back, piece by piece."""
    session: aiohttp.ClientSession = request.app["session"]
    body, kind = await request.read(), {"content-type": request.content_type}
    async with session.request(request.method, request.app["upstream"] + request.path, data=body, headers=kind) as got:
        answer = web.StreamResponse(status=got.status, headers={"content-type": got.headers["content-type"]})
        await answer.prepare(request)
        async for piece in got.content.iter_any():
            await answer.write(piece)
        await answer.write_eof()
        return answer


async def pool(app: web.Application) -> None:
    app["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def main(port: int, upstream: str) -> None:
    app = web.Application()
    app["upstream"] = upstream
    app.on_startup.append(pool)
    app.router.add_route("*", "/{path:.*}", relay)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
