"""Measure how fast a model really is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalog import units
from catalog.fit import memory
from catalog.intent import TIERS
from catalog.load import of_source
from catalog.machine import Machine, from_row
from catalog.model import Model
from catalog.speed import Speed, predict
from state import facts, secrets, service, stack, weights
from state.errors import DoesNotFit, EngineFailed, NotFound, NotRunning
from state.metrics import bench as benchmarks
from state.metrics.bench import Bench
from state.stack import Engine
from tasks import recommend
from tasks.engines import installed, serving
from tasks.plan import bench as plan
from tasks.plan import health
from tasks.queue import Context, job
from tasks.system import memory as system
from tasks.system import ports, process
from tasks.system.child import Later, run_child
from tasks.weights import description, manifest
from tasks.weights.formats import headers

NAME = "bench"
"""Of the engine's own, as a service and as a model."""
AGAIN_S = 5.0
IN_THE_WAY = ("pull", "verify_weights", "start", "restart", "bench", "tune", "install_engine", "upgrade_engine")
"""Kinds of jobs that take the machine's disk, memory or processors."""
FAST, SLOW = (1024, 128), (128, 32)
"""Tokens of prompt and answer by default, on a GPU and on a CPU."""
CACHE_BYTES = 300_000_000
"""For the prompts that the second turn of a conversation does not read again."""


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    engine: Engine
    """How it is served; for an engine of its own, how it will be."""
    revision: str
    pid: int | None
    """Of the engine that serves already; None when one is started for this."""
    release: str = ""
    """Which engine serves already."""


@job("bench")
def bench(
    context: Context,
    target: str,
    *,
    save: bool = False,
    runs: int = 3,
    prompt_tokens: int | None = None,
    gen_tokens: int | None = None,
    concurrency: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Time a tier's engine, or weights (folder or source) on an engine that is started for this and stopped after.

    Without a number of tokens, as many as this kind of machine does in a minute or so.
    Returns {"model", "quant", "rounds", "peak_bytes", "tools", "reused", "predicted", "verdict", "saved"}, speeds in
    tokens/s.
    Raises NotFound, NotRunning, DoesNotFit, EngineFailed, and Later while another job would be measured too; one that
    begins meanwhile continues, and the benchmark starts over after it.
    """
    began = context.db.now()
    wait_for_quiet(context, began)
    models, machine = recommend.all_models(context.home), read_machine(context)
    prompt, answer = SLOW if machine.backend == "cpu" else FAST
    shape = {"runs": runs, "prompt_tokens": prompt_tokens or prompt, "gen_tokens": gen_tokens or answer}
    shape |= {"concurrency": list(concurrency)}
    subject = _subject(context, target, models, shape)
    if subject.pid is None:
        check_room(context, machine, subject.engine)
    request: dict[str, Any] = shape | _serving(context, machine, subject)
    figures = _measured(context, request, began)
    figures |= {"release": request["release"], "mlx": installed.mlx(context.home, request["release"])}
    if subject.pid is None:
        weights.loaded(context.db, subject.engine.weights)
    summary = _told(subject, machine, models, figures)
    if save:
        for row in _rows(subject, machine, figures, runs):
            benchmarks.save(context.db, row)
    return summary | {"target": target, "saved": save}


def _measured(context: Context, request: dict[str, Any], began: float) -> dict[str, Any]:
    """Let a child measure. Raises EngineFailed, and Later when another job was at work in between."""

    def tell(step: dict[str, Any]) -> None:
        wait_for_quiet(context, began)
        context.report(step["phase"])

    try:
        figures = run_child(
            "tasks.engines.benchmark",
            request,
            on_progress=tell,
            cancelled=context.cancelled,
            timeout_s=context.remaining_s,
        )
    except EngineFailed:
        wait_for_quiet(context, began)  # a tier that is restarted is no failure of its engine
        raise
    wait_for_quiet(context, began)
    return figures


def wait_for_quiet(context: Context, began: float) -> None:
    """Raise Later when another job was at work since `began` (unix seconds) that would be measured too.

    Of two benchmarks, or tunings, the older one goes.
    """
    marks = ", ".join("?" * len(IN_THE_WAY))
    row = context.db.row(
        f"SELECT id, kind FROM jobs WHERE (state = 'running' OR finished_at > ?) AND kind IN ({marks})"  # noqa: S608 (our own names)
        " AND id != ? AND (kind NOT IN ('bench', 'tune') OR id < ?) ORDER BY id",
        (began, *IN_THE_WAY, context.claim.id, context.claim.id),
    )
    if row:
        raise Later(f"job {row['id']} ({row['kind']}) is at work", AGAIN_S)


def read_machine(context: Context) -> Machine:
    """Return the facts of this machine, detected now unless they were before."""
    row = facts.get(context.db, "machine")
    if row:
        return from_row(row)
    from tasks.system import hardware

    context.report("looking at the machine")
    machine = hardware.detect()
    facts.put(context.db, "machine", machine.as_row())
    return machine


def _subject(context: Context, target: str, models: Mapping[str, Model], shape: Mapping[str, Any]) -> Subject:
    tiers = {tier.name: tier for tier in stack.tiers(context.db)}
    if target not in tiers:
        return Subject(*own_engine(context, target, models, shape), pid=None)
    engine = tiers[target].engine
    row = service.find(context.db, engine.name)
    if row is None or row.state not in service.ROUTED or not row.identity:
        raise NotRunning(f"Tier {target} is not running.", hint=f"mlxq up {target}")
    record = manifest.read(Path(engine.weights))
    return Subject(engine, record.revision if record else "", process.decode(row.identity).pid, row.release)


def own_engine(
    context: Context, target: str, models: Mapping[str, Model], shape: Mapping[str, Any]
) -> tuple[Engine, str]:
    """Describe the engine that will be started, and return the revision of its weights.

    Raises NotFound, Damaged, and NotSetUp for the name of a tier where there is no stack.
    """
    if target in TIERS:
        stack.tier(context.db, target)
    row = weights.newest(context.db, target)
    folder = Path(row.folder if row else target)
    if not folder.is_dir():
        raise NotFound(f"No weights of {target} are here.", hint=f"mlxq pull {target}")
    record = manifest.read(folder)
    engine = described(folder, record.asked if record else f"file:{folder}", models, shape)
    return engine, record.revision if record else ""


def described(folder: Path, source: str, models: Mapping[str, Model], shape: Mapping[str, Any]) -> Engine:
    """Describe an engine of these weights that is large enough for the benchmark. Raises NotFound, Damaged."""
    inventory = headers.inventory(folder)
    entry = of_source(source, models)
    model, quant = entry or description.model_of_folder(folder, source)
    context_tokens = max(shape["prompt_tokens"] * 2 + shape["gen_tokens"], 2 * plan.TOOL_TOKENS)
    most = max(shape["concurrency"])
    return Engine(
        name=NAME,
        model=model.id if entry else source,
        quant=quant,
        source=source,
        port=ports.spare(),
        context=context_tokens,
        memory_bytes=memory(model, quant, context_tokens, most).total + CACHE_BYTES,
        cache_bytes=CACHE_BYTES,
        concurrency=most,
        weights=str(folder),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        vision=inventory.vision,
    )


def check_room(context: Context, machine: Machine, engine: Engine) -> None:
    """Raise DoesNotFit when the engine would push others out."""
    used = sum(row.memory_bytes or 0 for row in service.listing(context.db))
    room = min(system.memory().available, machine.usable_bytes - used)
    if engine.memory_bytes > room:
        need, free = units.apart(engine.memory_bytes, max(0, room))
        raise DoesNotFit(
            f"{engine.model} {engine.quant} needs {need}; {free} is free.",
            hint="mlxq down" if used else "mlxq models",
        )


def _serving(context: Context, machine: Machine, subject: Subject) -> dict[str, Any]:
    """Say where the child asks, and how it starts an engine where none serves."""
    engine, key = subject.engine, secrets.ensure(context.home.secrets)[secrets.TIER]
    request = {
        "port": engine.port,
        "name": engine.name,
        "key": key,
        "pid": subject.pid,
        "tools": bool(engine.tool_parser),
    }
    if subject.pid is not None:
        return request | {"argv": None, "release": subject.release}
    return request | started(context, engine, serving.launch(context.db, context.home, engine, key, machine.backend))


def started(context: Context, engine: Engine, launch: serving.Launch) -> dict[str, Any]:
    """Return how a child starts an engine of its own, as tasks/engines/benchmark.py takes it."""
    size = sum(file.stat().st_size for file in Path(engine.weights).glob("*.safetensors"))
    return {
        "release": launch.release,
        "argv": launch.argv,
        "environment": launch.environment(0),
        "log": str(context.home.log(NAME)),
        "start_limit_s": health.start_limit_s(size),
    }


def _told(
    subject: Subject, machine: Machine, models: Mapping[str, Model], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Add names and the verdict to what was measured; the prediction is for one request alone."""
    engine = subject.engine
    alone = next((row for row in figures["rounds"] if row["concurrency"] == 1), None)
    predicted = _predicted(engine, machine, models, alone["prompt_tokens"]) if alone else None
    return {
        **figures,
        "model": engine.model,
        "quant": engine.quant,
        "engine": figures["release"],
        "predicted": asdict(predicted) if predicted else None,
        "verdict": _verdict(alone, predicted) if alone and predicted else None,
    }


def _verdict(alone: Mapping[str, float], predicted: Speed) -> str:
    return plan.verdict(alone["decode_tps"], alone["prompt_tps"], predicted.decode, predicted.prompt)


def _predicted(engine: Engine, machine: Machine, models: Mapping[str, Model], tokens: int) -> Speed | None:
    """Return what the catalog expects, or the files of a model that it does not have; it knows of no benchmark here."""
    if engine.model in models:
        model = models[engine.model]
    else:
        model, _ = description.model_of_folder(Path(engine.weights), engine.source)
    return predict(machine, model, engine.quant, tokens) if engine.quant in model.quants else None


def _rows(subject: Subject, machine: Machine, figures: Mapping[str, Any], runs: int) -> list[Bench]:
    """Return the rows to keep."""
    engine = subject.engine
    return [
        Bench(
            model=engine.model,
            quant=engine.quant,
            source=engine.source,
            revision=subject.revision,
            chip=machine.chip,
            engine=figures["release"],
            mlx=figures["mlx"],
            runs=runs,
            reused=figures["reused"],
            peak_bytes=figures["peak_bytes"],
            **row,
        )
        for row in figures["rounds"]
    ]
