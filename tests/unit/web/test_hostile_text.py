"""Text from outside on the page: what looks like HTML is shown as it is written, in every section."""

from __future__ import annotations

import pytest
from support import scene

from mlxq.web import snapshot
from mlxq.web.html import HtmlRenderer
from state import event, ledger, service, stack
from state.db import Database
from state.errors import EngineFailed
from state.service import ServiceEvent
from tasks import kinds

HOSTILE = "<img src=x onerror=alert(1)>'\"><script>alert(2)</script>{{7*7}}\x1b[31m\u202e"


@pytest.fixture
def hostile(rows: Database) -> Database:
    """Let every text that comes from outside be hostile."""
    scene.all_ready(rows)
    ledger.enqueue(rows, kinds.new("pull", {"source": f"file:/{HOSTILE}"}))
    held = ledger.claim(rows, "heavy", {"pull"}, "worker")
    assert held
    ledger.fail(rows, held, EngineFailed(HOSTILE, hint=f"mlxq {HOSTILE}"))
    ledger.enqueue(rows, kinds.new("pull", {"source": f"hub:x/{HOSTILE}"}))
    held = ledger.claim(rows, "heavy", {"pull"}, "worker")
    assert held
    ledger.report(rows, held, HOSTILE, {"file": HOSTILE, "done": 1, "total": 2, "unit": HOSTILE})
    service.apply(rows, "fast", ServiceEvent.FAILED, cause=HOSTILE, cause_code="failed", hint=HOSTILE)
    event.record(rows, HOSTILE, service="standard", attempt=1, cause=HOSTILE)
    tier = stack.tier(rows, "standard")
    rows.run("UPDATE engines SET model = ?, quant = ? WHERE name = ?", (HOSTILE, HOSTILE, tier.engine.name))
    return rows


def test_no_text_becomes_markup(hostile: Database) -> None:
    renderer = HtmlRenderer()
    seen = snapshot.take(hostile, {})
    painted = "".join(renderer.sections(seen).values())
    assert "onerror=alert(1)&gt;" in painted
    assert "<script>alert" not in painted
    assert "<img" not in painted
    assert "'\"><" not in painted
