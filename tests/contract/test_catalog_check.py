"""`mlxq catalog check` against a Hub on loopback: what it finds wrong, and what it only mentions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub.client import Hub
from huggingface_hub import constants

from catalog import load
from mlxq import cli
from state.paths import Home

Check = Callable[..., tuple[int, dict[str, Any]]]
HEADS = {"full": 2, "kv_heads": 2, "head_dim": 64, "query_heads": 8}


@dataclass(frozen=True)
class Listed:
    """A model as the catalog has it."""

    source: str
    size: int
    attention: Mapping[str, int] = field(default_factory=dict[str, int])
    """What it says otherwise than the files."""

    def entry(self, name: str) -> dict[str, Any]:
        """Return the file of the catalog."""
        return {
            "id": name, "family": "Mine", "total_params_b": 1, "layers": 2, "hidden_size": 512, "context": 4096,
            "attention": HEADS | self.attention, "tool_parser": "hermes",
            "quants": {"int4": {"source": self.source, "bytes": self.size}},
        }  # fmt: skip


@pytest.fixture(scope="module")
def size(hub: Hub) -> int:
    """Give the bytes of the weights on the Hub."""
    return sum(path.stat().st_size for path in (hub.root / "tiny-4bit").glob("*.safetensors"))


@pytest.fixture
def check(
    hub: Hub, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Check a catalog of these models; give the exit code and what was said. Each check asks the Hub in a child."""
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(load, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # read once a process, maybe by another test
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    home.catalog.mkdir()

    def of(**models: Listed) -> tuple[int, dict[str, Any]]:
        for name, listed in models.items():
            (home.catalog / f"{name}.yaml").write_text(json.dumps(listed.entry(name)))
        code = cli.run(["catalog", "check", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told.pop("schema_version") == 1
        return code, told

    return of


def test_what_is_as_the_catalog_says_is_well_and_what_may_be_is_mentioned_alone(check: Check, size: int) -> None:
    """A few bytes that the catalog does not count are well; a gate, and a Hub that answers nonsense, may be."""
    code, told = check(
        well=Listed("hub:ok/tiny-4bit", size),
        near=Listed("hub:ok/tiny-4bit", int(size * 1.04)),
        gated=Listed("hub:gated/tiny-4bit", size),
        portal=Listed("hub:html/tiny-4bit", size),
    )

    found = {finding["model"]: finding for finding in told["findings"]}
    assert (code, told["models"], told["hub_asked"], found.keys()) == (0, 4, True, {"gated", "portal"})
    assert not any(finding["wrong"] for finding in found.values())
    assert "is gated" in found["gated"]["problem"]
    assert "could not be checked" in found["portal"]["problem"]


WRONG: dict[str, tuple[str, float, dict[str, int], str]] = {
    "gone": ("hub:ok/gone", 1, {}, "ok/gone is missing, private or gated"),
    "private": ("hub:private/tiny-4bit", 1, {}, "private/tiny-4bit is missing, private or gated"),
    "size": ("hub:ok/tiny-4bit", 2, {}, "holds 2 MB; the catalog says 5 MB"),
    "queries": ("hub:ok/tiny-4bit", 1, {"query_heads": 16}, "query heads: 16 in the catalog, 8 in config.json"),
    "cache": ("hub:ok/tiny-4bit", 1, {"kv_heads": 4}, "heads of the cache: 4 in the catalog, 2 in config.json"),
    "full": ("hub:ok/tiny-4bit", 1, {"full": 1}, "layers of full attention: 1 in the catalog, 2 in config.json"),
    "none": ("hub:ok/tiny-4bit", 1, {"query_heads": 0}, "query heads: 0 in the catalog, 8 in config.json"),
}
"""Model -> its repo, its size as a share of the real one, what its geometry says otherwise, and words of the finding.

Other weights may be uploaded under the same name; memory follows from geometry: half of the heads is half of the cache.
"""


def test_what_the_repo_tells_otherwise_is_wrong(check: Check, size: int) -> None:
    code, told = check(
        **{name: Listed(source, int(size * share), heads) for name, (source, share, heads, _) in WRONG.items()}
    )

    assert code == 1
    assert {finding["model"]: finding["wrong"] for finding in told["findings"]} == dict.fromkeys(WRONG, True)
    for finding in told["findings"]:
        assert WRONG[finding["model"]][3] in finding["problem"]


def test_a_hub_out_of_reach_is_not_asked(check: Check, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    told = check(mine=Listed("hub:ok/gone", size))

    assert told == (0, {"models": 1, "hub_asked": False, "findings": []})


def test_weights_that_are_not_on_the_hub_are_not_asked_for(check: Check, hub: Hub, tmp_path: Path) -> None:
    hub.set()

    assert check(mine=Listed(f"file:{tmp_path}", 1))[0] == 0

    assert hub.heard("api") == []
