"""Is what the catalog says true: its files, its parsers, and its repos on the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog import load, units
from catalog.description.differences import differences
from catalog.description.geometry import NoShape, shape
from catalog.description.repo_facts import RepoFacts
from catalog.engines import FALLBACK
from catalog.model import Model, Quant
from catalog.problems import BadModelFile
from catalog.schema import parse
from state.errors import EngineFailed, Gated, MlxqError, NotFound
from tasks.engines.adapters import ENGINES
from tasks.system.child import Later
from tasks.weights import description, source
from tasks.weights.hub import Hub, connect, hub_reachable

if TYPE_CHECKING:
    import httpx

SIDE_BY_SIDE = 8
SIZE_TOLERANCE = 0.05
"""Share by which a repo may differ: tokenizer and configuration are counted there, and not in the catalog."""
PARSERS_WAIT_S = 60.0


@dataclass(frozen=True)
class CatalogFinding:
    """One thing to know about a model."""

    model: str
    problem: str
    wrong: bool = True
    """False for what is worth a word and no mistake."""


def whole(overlay: Path, *, offline: bool) -> dict[str, Any]:
    """Check everything, the repositories where the Hub is in reach. Returns {"models", "hub_asked", "findings"}."""
    models, findings = files(overlay)
    findings += parsers(models)
    online = not offline and hub_reachable()
    if online:
        findings += repos(models)
    return {"models": len(models), "hub_asked": online, "findings": [asdict(finding) for finding in findings]}


def files(overlay: Path) -> tuple[dict[str, Model], list[CatalogFinding]]:
    """Read every file, the shipped ones and the user's, and continue after one that is wrong."""
    models: dict[str, Model] = {}
    findings: list[CatalogFinding] = []
    for path in (*sorted(load.SHIPPED.glob("*.y*ml")), *sorted(overlay.glob("*.y*ml"))):
        try:
            row = parse(path.read_text(encoding="utf-8"), str(path))
        except (BadModelFile, OSError, UnicodeDecodeError) as problem:
            findings.append(CatalogFinding(path.stem, str(problem)))
            continue
        if row["id"] == path.stem:
            models[path.stem] = load.model(row)
        else:
            findings.append(CatalogFinding(path.stem, f"{path}: the file is named otherwise than its id {row['id']!r}"))
    return models, findings


def parsers(models: Mapping[str, Model]) -> list[CatalogFinding]:
    """Hold the parsers against those of the engine in mlxq's environment, in a child. Raises EngineFailed."""
    engine = ENGINES[FALLBACK]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", engine.list_parsers],
        capture_output=True,
        text=True,
        check=False,
        env=plain,
        timeout=PARSERS_WAIT_S,
    )
    if done.returncode:
        raise EngineFailed(f"{engine.name} does not tell its parsers: {done.stderr.strip()[-200:]}", hint="mlxq doctor")
    tools, reasoning = json.loads(done.stdout.splitlines()[-1])
    findings: list[CatalogFinding] = []
    for model in models.values():
        for name, available, use in (
            (model.tool_parser, tools, "tool"),
            (model.reasoning_parser, reasoning, "reasoning"),
        ):
            if name is not None and name not in available:
                problem = f"{engine.name} has no {use} parser {name!r}; it has {', '.join(available)}"
                findings.append(CatalogFinding(model.id, problem))
    return findings


def repos(models: Mapping[str, Model]) -> list[CatalogFinding]:
    """Ask the Hub for every repo: whether it is there, open, and of the size and geometry that the catalog says."""
    pairs = [(model, quant) for model in models.values() for quant in model.quants.values() if quant.repo]
    with connect() as client, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = [pool.submit(_repo, client, model, quant) for model, quant in pairs]
        return [finding for future in futures for finding in future.result()]


def _repo(client: httpx.Client, model: Model, quant: Quant) -> list[CatalogFinding]:
    hub, wanted = Hub(client), source.parse(quant.source)
    try:
        planned = hub.plan(wanted.name, wanted.revision)
        config = description.config_of(hub, planned)
    except NotFound:
        return [
            CatalogFinding(
                model.id, f"{quant.repo} is missing, private or gated: the Hub answers the same to all three"
            )
        ]
    except Gated:
        return [CatalogFinding(model.id, f"{quant.repo} is gated; a conversion should be open", wrong=False)]
    except (MlxqError, Later) as problem:
        return [CatalogFinding(model.id, f"{quant.repo} could not be checked: {problem}", wrong=False)]
    weights_bytes = sum(file.size for file in planned.files if file.name.endswith(".safetensors"))
    return [*_size(model, quant, weights_bytes), *_geometry(model, quant, config)]


def _geometry(model: Model, quant: Quant, config: Mapping[str, Any]) -> list[CatalogFinding]:
    """Report what the config.json of a repo says otherwise than the catalog: memory and speed follow from it."""
    try:
        geometry = shape(RepoFacts(quant.source, config, 0))
    except NoShape as problem:
        return [CatalogFinding(model.id, f"{quant.repo} could not be compared: {problem}", wrong=False)]
    return [CatalogFinding(model.id, f"{quant.repo}: {words}") for words in differences(model, geometry)]


def _size(model: Model, quant: Quant, size: int) -> list[CatalogFinding]:
    """Report weights whose size on the Hub differs."""
    if abs(size - quant.bytes) <= SIZE_TOLERANCE * quant.bytes:
        return []
    computed = ", computed from its parameters" if quant.bytes_from.startswith("computed") else ""
    words = f"{quant.repo} holds {units.files(size)}; the catalog says {units.files(quant.bytes)}{computed}"
    return [CatalogFinding(model.id, words)]
