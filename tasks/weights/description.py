"""Describe a repo or a folder that no file of the catalog describes, from its small files and its headers.

Of a repo only config.json, the chat template and the headers of its weights are read, a few megabytes at most. What
answers no one, or cannot be loaded, is refused in words before a byte of weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from catalog import config_json
from catalog.description.describe import Description, NoShape, describe
from catalog.description.purpose import other_purpose
from catalog.description.repo_facts import RepoFacts
from catalog.model import Model
from state.errors import Damaged, NotFound, Offline
from tasks.system.child import Later
from tasks.weights import loaders, manifest, repo_files, source
from tasks.weights.formats import headers, safetensors
from tasks.weights.formats.safetensors import Header
from tasks.weights.hub import DownloadPlan, Hub
from tasks.weights.manifest import File
from tasks.weights.source import Source

SIDE_BY_SIDE = 8
LONGEST_BYTES = 32 << 20
"""Of a small file; the longest tokenizer_config.json that people publish has 10 MB."""
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Where a chat template may be, the file that wins first."""
ORDERED = ".g_idx"
"""The end of the names of tensors that say in which order GPTQ packed; mlx-lm takes the usual one alone."""
Reader = Callable[[str], bytes]
"""What reads a file of the repo by its name."""


def of_source(text: str) -> dict[str, Any]:
    """Return the description of a repo on the Hub as JSON. Raises as `of_repo` does."""
    return asdict(of_repo(Hub(), source.parse(text), text))


def of_repo(hub: Hub, wanted: Source, text: str) -> Description:
    """Return the description of a repo on the Hub. `text` is the source as it was asked for.

    Raises NotFound for what no engine loads or what is no model that answers, Gated, Offline, Damaged, Later.
    """
    plan = hub.plan(wanted.name, wanted.revision)
    sizes = {file.name: file for file in plan.files}

    def read(name: str) -> bytes:
        return hub.small_file(plan.repo, plan.revision, sizes[name], LONGEST_BYTES)

    config = config_of(hub, plan)
    _check(plan.repo, config, list(sizes), plan.task)
    shards = headers.check_files(plan.repo, list(sizes), config_json.read(config))
    tensors = _headers(hub, plan, [sizes[name] for name in shards])
    _check_tensors(plan.repo, config, tensors)
    return _described(
        plan.repo,
        RepoFacts(
            source=text,
            config=config,
            weights_bytes=sum(sizes[name].size for name in shards),
            tensors=tensors,
            template=template(sizes, read),
            licence=plan.licence or "",
            gated=plan.gated,
            converted=wanted.convert or "",
        ),
    )


def config_of(hub: Hub, plan: DownloadPlan) -> dict[str, Any]:
    """Return the config.json of a repo. Raises Damaged, and what the Hub's refusals raise."""
    (file,) = (file for file in plan.files if file.name == "config.json")
    return _json(plan.repo, file.name, hub.small_file(plan.repo, plan.revision, file, LONGEST_BYTES))


def of_folder(folder: Path, text: str) -> Description:
    """Return the description of a folder of weights. Raises NotFound, Damaged, OSError."""
    names = headers.plain_files(folder)
    subject = str(folder)
    repo_files.check_loadable(subject, names)
    config = headers.read_json(folder / "config.json")
    _check(subject, config, names, "")
    shards = headers.check_files(subject, names, config_json.read(config))
    tensors = {name: tensor for shard in shards for name, tensor in safetensors.read(folder / shard).items()}
    _check_tensors(subject, config, tensors)
    record = manifest.read(folder)
    return _described(
        subject,
        RepoFacts(
            source=text,
            config=config,
            weights_bytes=sum((folder / name).stat().st_size for name in shards),
            tensors=tensors,
            template=template(names, lambda name: (folder / name).read_bytes()),
            licence=(record.licence if record else None) or "",
            converted="" if record else source.parse(text).convert or "",
        ),
    )


def model_of_folder(folder: Path, text: str) -> tuple[Model, str]:
    """Return the model and quant that the files of weights describe. Raises NotFound, Damaged, OSError."""
    contents = of_folder(folder, text)
    return contents.model, contents.quant


def template(names: Iterable[str], read: Reader) -> str:
    """Return the chat template, wherever the files keep it; all of them where there are several, and empty for none."""
    present = set(names)
    for name in TEMPLATES:
        if name not in present:
            continue
        content = read(name)
        if text := content.decode("utf-8", "replace") if name.endswith(".jinja") else _template_of(content):
            return text
    return ""


def _template_of(content: bytes) -> str:
    """Return what a JSON file says under `chat_template`: a text, or a list of named ones."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    value = config_json.mapping(document).get("chat_template")
    if isinstance(value, list):
        named = map(config_json.mapping, cast("list[Any]", value))
        return "\n".join(config_json.string(entry.get("template")) for entry in named)
    return config_json.string(value)


def _json(subject: str, name: str, content: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises Damaged."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise Damaged(f"{subject}/{name} is not JSON: {problem}.") from problem
    if not isinstance(document, dict):
        raise Damaged(f"{subject}/{name} is not a JSON object.")
    return dict(config_json.mapping(document))


def _check(subject: str, config: Mapping[str, Any], names: Sequence[str], task: str) -> None:
    """Raise NotFound for a model that answers nothing, or that no installed loader loads."""
    if other := other_purpose(config, names, task):
        raise NotFound(f"{subject} {other}, and a tier must answer.", hint="mlxq models --catalog")
    loaders.check(subject, config)


def _check_tensors(subject: str, config: Mapping[str, Any], tensors: Header) -> None:
    """Raise NotFound for weights of which only the headers tell that they cannot be loaded."""
    if any(name.endswith(ORDERED) for name in tensors):
        raise NotFound(
            f"{subject} is quantized with {config_json.read(config).foreign_quantization or 'GPTQ'} in an order of its "
            "own (g_idx), which mlx-lm does not load.",
            hint=loaders.CONVERSIONS,
        )


def _headers(hub: Hub, plan: DownloadPlan, files: Sequence[File]) -> Header:
    """Return the tensors of all shards; none where their host does not give them now, for they can be done without."""

    def read(file: File) -> Header:
        return hub.header(plan.repo, plan.revision, file)

    try:
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            shards = list(pool.map(read, files))
    except (Offline, Later):
        return {}
    return {name: tensor for header in shards for name, tensor in header.items()}


def _described(subject: str, facts: RepoFacts) -> Description:
    try:
        return describe(facts)
    except NoShape as problem:
        raise NotFound(
            f"{subject} cannot be planned: {problem}.", hint="Describe it in a file: docs/add-a-model.md"
        ) from problem
