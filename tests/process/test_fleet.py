"""Two machines become a fleet: they join, do jobs for each other, leave, and let no one else in.

One story over two real workers and gateways: each test continues where the one before it ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from support import loopback
from support.fleet import Machine

from state import secrets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CHAT = {"model": "standard", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """Return the machine that invites, mini, and studio, which joins; only their gateways and workers run yet."""
    root = tmp_path_factory.mktemp("fleet")
    machines = Machine("mini", root / "mini"), Machine("studio", root / "studio")
    for machine in machines:
        machine.up()
    yield machines
    for machine in machines:
        machine.close()


def invited(machine: Machine) -> str:
    """Return a fresh token."""
    return machine.document("node", "invite", "--yes")["token"]


def master(machine: Machine) -> str:
    return secrets.read(machine.home.secrets)[secrets.MASTER]


class Asking(threading.Thread):
    """Asks a gateway on loopback, one request after another, until it is stopped."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.over = threading.Event()
        self.answers: list[int] = []

    def run(self) -> None:
        url, headers = f"http://127.0.0.1:{self.machine.port}", {"Authorization": f"Bearer {master(self.machine)}"}
        while not self.over.is_set():
            self.answers.append(loopback.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers).status_code)


def test_a_machine_joins_within_seconds_and_refuses_nothing_meanwhile(fleet: tuple[Machine, Machine]) -> None:
    mini, studio = fleet
    text = invited(mini)
    asking = Asking(studio)
    asking.start()
    began = time.monotonic()
    said = studio.run("node", "join", "-", "--yes", text=text)
    took_s = time.monotonic() - began
    asking.over.set()
    asking.join()

    assert "studio serves in the fleet of mini." in said
    assert took_s < 30, "10 s on a machine that does nothing else"
    assert set(asking.answers) == {200}
    node = mini.nodes()["studio"]
    assert (node["state"], node["problem"], node["address"]) == ("healthy", None, studio.url)
    assert node["serves"]["standard"] == {"context": 4096, "slots": 4, "decode_tps": None}
    assert "studio is in the fleet of mini" in studio.run("node", "list")
    assert text not in mini.mlxq.logs() + studio.mlxq.logs()
