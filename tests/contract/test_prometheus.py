"""Debian's Prometheus reads the metrics of a real page with what `mlxq connect prometheus` prints, and alerts."""

from __future__ import annotations

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


def test_prometheus_scrapes_the_page_and_alerts(
    rows: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        where = f"127.0.0.1:{free_port()}"
        argv = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={where}"]
        with subprocess.Popen(["prometheus", *argv], stderr=subprocess.DEVNULL) as prometheus:
            try:
                until(lambda: _value(where, 'mlxq_service_up{service="fast"}') == "1", 30)
                assert _value(where, "up") == "1"
                assert _alerts(where) == set()
                service.apply(rows, "fast", ServiceEvent.FAILED, cause="x", cause_code="failed", hint="y")
                until(lambda: _alerts(where) == {("MlxqNeedsAttention", "fast")}, 30)
            finally:
                prometheus.terminate()


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
