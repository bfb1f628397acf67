"""`mlxq catalog check` against a Hub on loopback: what it finds wrong, and what it only mentions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.client import Hub
from huggingface_hub import constants

from catalog import load
from mlxq import cli
from state.paths import Home

Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def size(hub: Hub) -> int:
    """Give the bytes of the weights on the Hub."""
    return sum(path.stat().st_size for path in (hub.root / "tiny-4bit").glob("*.safetensors"))


@pytest.fixture
def check(
    hub: Hub, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Check a catalog of one model, whose weights have this source and size; give the exit code and what was said."""
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(load, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # read once a process, maybe by another test
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    home.catalog.mkdir()

    def one(source: str, size: int, attention: dict[str, int] | None = None) -> tuple[int, dict[str, Any]]:
        entry = {
            "id": "mine", "family": "Mine", "total_params_b": 1, "layers": 2, "hidden_size": 512, "context": 4096,
            "attention": {"full": 2, "kv_heads": 2, "head_dim": 64, "query_heads": 8} | (attention or {}),
            "tool_parser": "hermes",
            "quants": {"int4": {"source": source, "bytes": size}},
        }  # fmt: skip
        (home.catalog / "mine.yaml").write_text(json.dumps(entry))
        code = cli.run(["catalog", "check", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told.pop("schema_version") == 1
        return code, told

    return one


def test_a_repo_that_is_as_the_catalog_says_is_well(check: Check, size: int) -> None:
    assert check("hub:ok/tiny-4bit", size) == (0, {"models": 1, "hub_asked": True, "findings": []})


@pytest.mark.parametrize("repo", ["ok/gone", "private/tiny-4bit"])
def test_a_repo_that_is_gone_is_wrong(check: Check, size: int, repo: str) -> None:
    code, told = check(f"hub:{repo}", size)

    (found,) = told["findings"]
    assert (code, found["model"], found["wrong"]) == (1, "mine", True)
    assert found["problem"].startswith(f"{repo} is missing, private or gated")


def test_weights_of_another_size_are_wrong(check: Check, size: int) -> None:
    """As after an upload of other weights under the same name; the tolerance is for what the catalog does not count."""
    assert check("hub:ok/tiny-4bit", int(size * 1.04))[0] == 0

    code, told = check("hub:ok/tiny-4bit", size * 2)

    (found,) = told["findings"]
    assert (code, found["wrong"]) == (1, True)
    assert "holds 2 MB; the catalog says 5 MB" in found["problem"]


@pytest.mark.parametrize(
    ("repo", "words"), [("gated/tiny-4bit", "is gated"), ("html/tiny-4bit", "could not be checked")]
)
def test_what_may_be_well_is_mentioned_alone(check: Check, size: int, repo: str, words: str) -> None:
    """A gate, and a Hub that answers nonsense, as behind a captive portal."""
    code, told = check(f"hub:{repo}", size)

    (found,) = told["findings"]
    assert (code, found["wrong"]) == (0, False)
    assert words in found["problem"]


def test_a_hub_out_of_reach_is_not_asked(check: Check, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    assert check("hub:ok/gone", size) == (0, {"models": 1, "hub_asked": False, "findings": []})


def test_weights_that_are_not_on_the_hub_are_not_asked_for(check: Check, hub: Hub, tmp_path: Path) -> None:
    hub.set()

    assert check(f"file:{tmp_path}", 1)[0] == 0

    assert hub.heard("api") == []


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ({"query_heads": 16}, "query heads: 16 in the catalog, 8 in config.json"),
        ({"kv_heads": 4}, "heads of the cache: 4 in the catalog, 2 in config.json"),
        ({"full": 1}, "layers of full attention: 1 in the catalog, 2 in config.json"),
        ({"query_heads": 0}, "query heads: 0 in the catalog, 8 in config.json"),
    ],
)
def test_geometry_that_the_repo_tells_otherwise_is_wrong(
    check: Check, size: int, attention: dict[str, int], words: str
) -> None:
    """Memory follows from it: half of the heads is half of the cache."""
    code, told = check("hub:ok/tiny-4bit", size, attention)

    (found,) = told["findings"]
    assert (code, found["wrong"], found["problem"]) == (1, True, f"ok/tiny-4bit: {words}")
