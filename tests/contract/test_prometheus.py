"""Debian's Prometheus reads the metrics of a real page with what `mlxq connect prometheus` prints, and alerts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import loopback, scene
from support.mlxq_home import until
from support.page import running
from support.ports import free_port

from mlxq import cli
from state import secrets, service, settings
from state.db import Database, open_database
from state.metrics import sample
from state.metrics.sample import MINUTE_S, Sample
from state.paths import Home
from state.service import ServiceEvent

ALERTS = Path(__file__).parents[2] / "docs" / "prometheus-alerts.yml"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian's prometheus is not installed"),
]


@pytest.fixture
def rows(home: Home) -> Iterator[Database]:
    """Return the rows of a stack that serves, and of a worker that lives."""
    db = open_database(home)
    secrets.ensure(home.secrets)
    scene.all_ready(db)
    scene.beat(db)
    yield db
    db.close()


@pytest.fixture
def where(rows: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Return the address of a Prometheus that scrapes the page as `mlxq connect prometheus` says."""
    with running(rows.home) as page:
        settings.write(rows.home, "page-port", page.port)
        assert cli.run(["connect", "prometheus"]) == 0
        scrape = capsys.readouterr().out
        assert page.key not in scrape
        config = tmp_path / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\nrule_files: [{ALERTS}]\n"
            f"scrape_configs:\n{scrape}"
        )
        address = f"127.0.0.1:{free_port()}"
        argv = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}"]
        with subprocess.Popen(["prometheus", *argv], stderr=subprocess.DEVNULL) as prometheus:
            try:
                until(lambda: _value(address, 'mlxq_service_up{service="fast"}') == "1", 60)
                yield address
            finally:
                prometheus.terminate()


def test_prometheus_scrapes_the_page_and_alerts(rows: Database, where: str) -> None:
    assert _value(where, "up") == "1"
    assert _alerts(where) == set()
    service.apply(rows, "fast", ServiceEvent.FAILED, cause="x", cause_code="failed", hint="y")
    until(lambda: _alerts(where) == {("MlxqNeedsAttention", "fast")}, 30)


def test_prometheus_has_an_answer_to_each_query_of_the_board(rows: Database, where: str) -> None:
    """Of a stack that was asked in the last minute, that lost an engine once, and where jobs ended."""
    scene.die(rows, "fast")
    scene.ready(rows, "fast")
    scene.succeed(rows, "smoke_test")
    scene.fail(rows, "fast")
    minute = int(rows.now()) // MINUTE_S * MINUTE_S - MINUTE_S
    used = Sample(sample.MACHINE, minute, MINUTE_S, 1.0, memory_bytes=2**30, swap_bytes=0)
    asked = Sample("fast", minute, MINUTE_S, 1.0, running=1.0, waiting=0.5, requests=6, prompt_tokens=900,
                   completion_tokens=300, decode_tps=40, prompt_tps=900, ttft_s=0.4, memory_bytes=2**30)  # fmt: skip
    sample.take(rows, [used, asked])
    board = json.loads((ALERTS.parent / "grafana.json").read_text())
    queries = {target["expr"] for panel in board["panels"] for target in panel.get("targets", ())}
    assert len(queries) > 12
    for query in sorted(queries):
        until(lambda query=query: bool(_ask(where, "query", query=query)["result"]), 30)


def _ask(where: str, path: str, **params: str) -> Any:
    answer = loopback.get(f"http://{where}/api/v1/{path}", params=params).raise_for_status()
    return answer.json()["data"]


def _value(where: str, query: str) -> str | None:
    """Return the newest value of a query with one series; None while there is none, or it only starts."""
    try:
        result = _ask(where, "query", query=query)["result"]
    except httpx.HTTPError:
        return None
    return result[0]["value"][1] if result else None


def _alerts(where: str) -> set[tuple[str, str]]:
    """Return the names and services of the alerts that fire."""
    labels = [alert["labels"] for alert in _ask(where, "alerts")["alerts"] if alert["state"] == "firing"]
    return {(label["alertname"], label.get("service", "")) for label in labels}
