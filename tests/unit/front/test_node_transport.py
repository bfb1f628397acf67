"""How the front reaches its nodes: by their own certificates, and telling whose request it is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tasks.front.node_transport import APP, APP_WORDS, NodeTransport
from tasks.plan import gateway
from tasks.system import certificates

ANSWER = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve over TLS with a certificate of `folder` for a name that is not the address; yield where, and what came."""
    certificates.ensure(folder, ["studio.local"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_file(folder))
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


def asked(folder: Path, trusted: Path, ask: Callable[[httpx.AsyncClient, str], Awaitable[None]]) -> list[bytes]:
    """Have a front that trusts the authority in `trusted` ask the node of `folder`; return what the node got."""

    async def work() -> list[bytes]:
        async with node(folder) as (url, heads):
            transport = NodeTransport()
            transport.point({url: certificates.authority_file(trusted).read_text()})
            async with httpx.AsyncClient(transport=transport) as client:
                await ask(client, url)
            return heads

    return asyncio.run(work())


async def post(client: httpx.AsyncClient, url: str) -> None:
    assert (await client.post(f"{url}/v1/chat/completions", json={})).text == "ok"


def test_a_node_is_known_by_its_authority_whatever_address_it_has(tmp_path: Path) -> None:
    heads = asked(tmp_path / "studio", tmp_path / "studio", post)
    assert len(heads) == 1
    assert APP.encode() not in heads[0]


def test_a_node_is_told_of_the_app_that_asks_and_another_request_says_nothing(tmp_path: Path) -> None:
    async def ask(client: httpx.AsyncClient, url: str) -> None:
        async def of_an_app() -> None:
            APP_WORDS.set("background no-store")
            await post(client, url)

        await asyncio.create_task(of_an_app())
        await post(client, url)

    first, second = asked(tmp_path / "studio", tmp_path / "studio", ask)
    assert b"\r\nx-mlxq-app: background no-store\r\n" in first
    assert b"x-mlxq-app" not in second
    assert gateway.APP == APP


def test_another_machine_at_a_nodes_address_gets_no_request(tmp_path: Path) -> None:
    async def refused(client: httpx.AsyncClient, url: str) -> None:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.post(f"{url}/v1/chat/completions", headers={"authorization": "Bearer sk-1"}, json={})

    certificates.ensure(tmp_path / "studio", ["studio.local"], datetime.now(UTC))
    assert asked(tmp_path / "impostor", tmp_path / "studio", refused) == []


def test_what_is_no_node_is_not_asked(tmp_path: Path) -> None:
    async def elsewhere(client: httpx.AsyncClient, _: str) -> None:
        with pytest.raises(httpx.ConnectError, match=r"10\.0\.0\.9 is no node of this fleet"):
            await client.get("https://10.0.0.9:4000/v1/models")

    assert asked(tmp_path / "studio", tmp_path / "studio", elsewhere) == []
