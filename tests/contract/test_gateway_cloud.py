"""The way out of the machine: there only with a key, last, capped, and logged. OpenRouter is a stand-in on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from support import loopback
from support.gateway import MASTER, Gateway, Upstream

from tasks.plan.gateway import BATCH, BATCH_CLOUD

KEY = "sk-or-v1-of-the-cloud-test"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cloud(every_upstream: dict[str, Upstream]) -> Iterator[Upstream]:
    made = Upstream("cloud")
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def lonely(proxy: Gateway, cloud: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Yield a gateway whose one tier is dead, with a cloud to fall back to and two unpriced requests to spend."""
    dead = type(cloud)("standard")
    made = Gateway(
        home=tmp_path_factory.mktemp("lonely"),
        tiers=[dead.tier()],
        secrets={**proxy.secrets, "OPENROUTER_API_KEY": KEY},
        cloud_model="org/model",
        cloud_url=f"{cloud.url}/api/v1",
        cloud_cap_usd=0.02,
    )
    made.start()
    yield made
    made.stop()


def line_of_batch(gateway: Gateway, owner: str) -> httpx.Response:
    """Ask as the worker does for a batch."""
    body = {"model": "standard", "messages": [{"role": "user", "content": "say two"}]}
    headers = {"Authorization": f"Bearer {MASTER}", BATCH: owner}
    return loopback.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_the_cloud_answers_last_and_within_its_cap(lonely: Gateway, cloud: Upstream):
    """A stream and a line of a batch leave the machine; the third request meets the cap, and nothing leaves.

    A line stays here unless its batch says otherwise.
    """
    assert line_of_batch(lonely, "mlxq").status_code == 503
    assert cloud.seen() == []
    assert "data: [DONE]" in lonely.ask("say one", stream=True).text
    answer = line_of_batch(lonely, f"mlxq {BATCH_CLOUD}")
    assert (answer.headers["x-mlxq-tier"], answer.json()["choices"][0]["message"]["content"]) == ("cloud", "two")
    assert [body["model"] for body in cloud.seen()] == ["org/model", "org/model"]

    refused = lonely.ask("say three")
    assert refused.status_code == 503
    assert "cap of $0.02 a day is reached" in refused.text
    assert len(cloud.seen()) == 2

    spent = json.loads((lonely.home / "cloud.json").read_text())
    assert (spent["requests"], spent["usd"]) == (2, 0.02)
    log = lonely.log.read_text()
    assert log.count("A request leaves the machine: key=mlxq asked='standard'") == 2
    assert KEY not in log
    assert "say one" not in log


def test_without_a_cloud_model_nothing_leaves(proxy: Gateway, upstreams: dict[str, Upstream], cloud: Upstream):
    before = len(cloud.seen())
    for one in upstreams.values():
        one.kill()
    assert proxy.ask("say four").status_code == 503
    assert proxy.ask("say five", "cloud").status_code == 404
    assert len(cloud.seen()) == before
