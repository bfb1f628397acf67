"""What other machines ask the gateway is encrypted; here they ask from another address of loopback."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support import loopback
from support.gateway import MASTER, Gateway
from support.scripted import ScriptedEngine

from tasks.gateway.tls import HANDSHAKES
from tasks.system import certificates

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OTHER = "127.0.0.2"
NAMES = ["localhost", "127.0.0.1", OTHER]


@pytest.fixture(scope="module")
def gateway(every_engine: dict[str, ScriptedEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("tls")
    certificates.ensure(home / "tls", NAMES, datetime.now(UTC))
    made = Gateway(
        home=home,
        tiers=[engine.tier() for engine in every_engine.values()],
        secrets={"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": "sk-tier"},
        host="0.0.0.0",
        tls=home / "tls",
    )
    made.start()
    yield made
    made.stop()


def trusting(folder: Path) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(certificates.authority_file(folder)))
    return httpx.Client(verify=context, trust_env=False, timeout=30)


def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"https://{OTHER}:{gateway.port}/v1", api_key=MASTER, http_client=trusting(gateway.home / "tls")
    )


def test_other_machines_ask_encrypted_and_this_one_as_ever(gateway: Gateway) -> None:
    words: Any = [{"role": "user", "content": "hello"}]
    with client(gateway) as other:
        whole = other.chat.completions.create(model="standard", messages=words)
        stream = other.chat.completions.create(model="standard", messages=words, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert whole.choices[0].message.content == text.strip() != ""
    assert gateway.ask("hello").status_code == 200


def test_what_is_not_encrypted_or_not_trusted_gets_nothing(gateway: Gateway) -> None:
    with pytest.raises(httpx.TransportError):
        loopback.get(f"http://{OTHER}:{gateway.port}/health/readiness")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{OTHER}:{gateway.port}/health/readiness", trust_env=False)


def test_a_key_is_wanted_as_elsewhere(gateway: Gateway) -> None:
    with trusting(gateway.home / "tls") as other:
        assert other.get(f"https://{OTHER}:{gateway.port}/v1/models").status_code == 401


def test_connections_that_never_say_hello_hold_up_no_request_here(gateway: Gateway) -> None:
    """More than handshakes may go on at once: their like wait, and this machine's own requests do not."""
    with ExitStack() as silent:
        for _ in range(2 * HANDSHAKES):
            silent.enter_context(socket.create_connection((OTHER, gateway.port), timeout=5))
        assert gateway.ask("hello").status_code == 200
        assert gateway.process
        descriptors = len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))
        assert descriptors < HANDSHAKES + 60
    with trusting(gateway.home / "tls") as other:
        assert other.get(f"https://{OTHER}:{gateway.port}/health/readiness").status_code == 200


def test_a_renewed_certificate_is_used_at_the_next_connection(gateway: Gateway) -> None:
    folder = gateway.home / "tls"

    def shown() -> bytes:
        context = ssl.create_default_context(cafile=str(certificates.authority_file(folder)))
        with (
            socket.create_connection((OTHER, gateway.port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=OTHER) as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""

    before = shown()
    certificates.ensure(folder, [*NAMES, "10.9.8.7"], datetime.now(UTC))
    after = shown()
    assert after != before
    kept = certificates.server_file(folder).read_bytes()
    certificates.server_file(folder).write_bytes(b"half a fi")
    assert shown() == after, "a file that cannot be used leaves the one before in use"
    certificates.server_file(folder).write_bytes(kept)
