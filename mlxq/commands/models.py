"""`mlxq models`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from catalog import units
from catalog.fit import memory
from catalog.intent import INTENTS
from catalog.model import Model
from catalog.quality import quality, worth
from catalog.select import SHOWN_CONTEXT, families, select, tags
from mlxq import catalog_list, jobs_client, options, render
from mlxq.catalog_list import Here
from mlxq.setup import recommendation
from state.errors import NotSetUp, UsageProblem
from state.paths import Home, get_home
from tasks import recommend

if TYPE_CHECKING:
    from catalog.machine import Machine
    from catalog.offer import Reuses
    from catalog.speed import Measured, Speed
    from mlxq.local_models import Installed
    from mlxq.model_fit import Need

VIEWS = ("catalog", "recommend", "available")
NEEDS = {
    "explain": ("recommend",),
    "intent": ("recommend",),
    "show_all": ("recommend",),
    "budget": ("catalog", "recommend"),
    "family": ("catalog", "recommend"),
    "tag": ("catalog", "recommend", "available"),
    "tool_calling": ("catalog", "recommend"),
    "search": ("available",),
    "author": ("available",),
    "limit": ("available",),
    "page": ("available",),
}
"""Each option, and the views it makes sense with."""
MIB = 2**20


@click.command()
@click.option("--catalog", is_flag=True, help="List the models in the catalog.")
@click.option("--recommend", is_flag=True, help="Recommend models for this machine; changes nothing.")
@click.option("--available", is_flag=True, help="List MLX models on the Hub.")
@click.option("--budget", type=options.MemorySize(), metavar="SIZE", help="Memory for models, such as 30gb.")
@click.option("--intent", type=click.Choice(list(INTENTS)), help="What the models are for.  [default: balanced]")
@click.option("--explain", is_flag=True, help="Explain the choice, the next best, and what more memory would change.")
@click.option("--show-all", is_flag=True, help="List every model that fits, best first.")
@click.option("--family", metavar="NAME", help="Only this family, such as gemma3.")
@click.option("--tag", metavar="NAME", help="Only models with this tag, such as coding.")
@click.option("--tool-calling", is_flag=True, help="Only models that call tools.")
@click.option("--search", metavar="TEXT", help="Only repositories whose name contains TEXT.")
@click.option("--author", metavar="NAME", help="Only repositories of this owner, such as mlx-community.")
@click.option("--limit", type=click.IntRange(1, 100), metavar="N", help="Repositories per page.  [default: 20]")
@click.option("--page", type=click.IntRange(1, 50), metavar="N", help="Page number.  [default: 1]")
@options.as_json
def command(*, as_json: bool, **params: Any) -> None:
    """List installed, known or available models.

    Without an option, list the models installed on this machine.
    """
    view = _view(params)
    home = get_home()
    models = recommend.all_models(home)
    for problem in recommend.file_problems(home):
        render.say(f"{problem} It is left out, or its last valid version counts.\nCure: mlxq catalog check")
    if view == "catalog":
        filtered = any(params[name] for name in ("family", "tag", "tool_calling", "budget"))
        catalog_list.show(home, _selected(models, params), filtered=filtered, as_json=as_json)
    elif view == "recommend":
        _recommend(home, models, params, as_json=as_json)
    elif view == "available":
        _available(home, params, as_json=as_json)
    else:
        _local(home, models, as_json=as_json)


def _view(params: Mapping[str, Any]) -> str:
    """Return the requested view. Raises UsageProblem for two of them, or for an option that needs another."""
    views = [view for view in VIEWS if params[view]]
    if len(views) > 1:
        raise UsageProblem(
            f"--{views[0]} and --{views[1]} are separate lists; pass one of them.", hint="mlxq models --help"
        )
    view = views[0] if views else ""
    for option, fitting in NEEDS.items():
        if params[option] and view not in fitting:
            needed = " or ".join(f"--{name}" for name in fitting)
            import shlex

            name = option.replace("_", "-")
            words = shlex.join([f"--{name}", *_value(option, params[option])])
            raise UsageProblem(f"--{name} needs {needed}.", hint=f"mlxq models --{fitting[0]} {words}")
    return view


def _value(option: str, value: Any) -> list[str]:
    """Return the word after an option; none after a flag."""
    if value is True:
        return []
    return [f"{value // MIB}mb" if option == "budget" else str(value)]


def _selected(models: Mapping[str, Model], params: Mapping[str, Any]) -> dict[str, Model]:
    """Return the models that match the filters. Raises UsageProblem when none does."""
    budget = params["budget"] if params["catalog"] else None
    wanted = {name: params[name] for name in ("family", "tag", "tool_calling")}
    matches = select(models, budget_bytes=budget, **wanted)
    if not matches:
        for name, values in (("family", families(models)), ("tag", tags(models))):
            if params[name] and not select(models, **{name: params[name]}):
                raise UsageProblem(f"No model has the {name} {params[name]!r}; there is {', '.join(values)}.")
        raise UsageProblem("No model matches all filters.", hint="mlxq models --catalog")
    return {model.id: model for model in matches}


def _local(home: Home, models: Mapping[str, Model], *, as_json: bool) -> None:
    """Show the weights on this machine."""
    from mlxq import local_models, model_fit

    try:
        with jobs_client.reading(home) as db:
            installed = local_models.listing(home, db, models)
    except NotSetUp:
        installed = local_models.listing(home, None, models)
    total = sum(row.size for row in installed)
    needs = model_fit.needs(installed, models, model_fit.budget(home))
    if as_json:
        rows = [row.row() | need.row() for row, need in zip(installed, needs, strict=True)]
        render.data({"models": rows, "total_bytes": total})
        return
    if not installed:
        render.say("No models are installed yet.")
        render.next_step("mlxq models --recommend")
        return
    _local_table(installed, needs)
    click.echo(f"\n{len(installed)} {'model' if len(installed) == 1 else 'models'}, {units.files(total)}.")
    for row in installed:
        if row.problem:
            click.echo(f"{row.folder.name}: {row.problem}")
    if damaged := next((row for row in installed if row.state == "damaged" and row.source), None):
        render.next_step(f"mlxq verify {shlex.quote(damaged.folder.name)}")


def _local_table(installed: list[Installed], needs: list[Need]) -> None:
    render.table(
        ["MODEL", "QUANT", "SIZE", "MEMORY", "FITS", "STATE", "HASHED", "USED BY", "SOURCE"],
        [_local_row(row, need) for row, need in zip(installed, needs, strict=True)],
        right=(2, 3, 4),
    )


def _local_row(row: Installed, need: Need) -> list[Any]:
    return [
        row.model,
        row.quant,
        units.files(row.size),
        need.memory_bytes and units.memory(need.memory_bytes),
        need.fits,
        row.state,
        render.ago(row.verified),
        " ".join(row.used_by),
        row.source or "not by mlxq",
    ]


def _recommend(home: Home, models: Mapping[str, Model], params: Mapping[str, Any], *, as_json: bool) -> None:
    """Choose for this machine and show it."""
    from state import settings

    wanted = settings.load(home)
    machine, benches = _this_machine(home)
    budget = _budget(machine, params["budget"], wanted["memory-budget-pct"])
    matches = _selected(models, params)
    if params["show_all"]:
        _every(machine, matches, benches, budget, as_json=as_json)
        return
    chosen = recommend.recommend(
        machine,
        matches,
        params["intent"] or "balanced",
        budget,
        benches=benches,
        quant=recommend.quant_wanted(wanted),
        reuses=_reuses(home),
    )
    if as_json:
        render.data(recommendation.document(machine, chosen))
        return
    recommendation.show(chosen, explain=params["explain"])
    if params["explain"]:
        _tunings(home, {pick.tier: models[pick.model].quants[pick.quant].source for pick in chosen.picks})
    _warn_offline()
    render.next_step("mlxq setup")


def _tunings(home: Home, sources: Mapping[str, str]) -> None:
    """Print what makes answers faster here with the models of tiers. `sources`: of the weights, by tier."""
    from state.metrics import tuning

    if not home.database.exists():
        return
    with jobs_client.reading(home) as db:
        used = [(tier, row) for tier, source in sources.items() for row in tuning.of_source(db, source).items()]
    for tier, (release, row) in used:
        render.prose(f"{tier}: {release} answers with {row.text}, measured here (mlxq bench --tune).")


def _reuses(home: Home) -> Reuses:
    """Return of which models the engine that would serve them reads only the new part of a prompt."""
    from tasks.engines import serving

    try:
        with jobs_client.reading(home) as db:
            return serving.reads_once(db, home)
    except NotSetUp:
        return serving.reads_once(None, home)


def _budget(machine: Machine, named: int | None, share: int | str) -> int:
    """Return the bytes to plan for; a budget beyond what the machine can give is capped, with a word."""
    from state import settings

    most = recommend.budget(machine, settings.AUTO)
    if named is None:
        return recommend.budget(machine, share)
    if named > most:
        wanted, limit = units.apart(named, most)
        render.say(f"This machine can give the models {limit}; a budget of {wanted} is more, so {limit} is planned.")
    return min(named, most)


def _warn_offline() -> None:
    """Print that setup would choose differently while the Hub is out of reach."""
    from catalog.offer import BUILTIN
    from tasks.weights import hub

    if not hub.hub_reachable():
        render.say(
            "The Hub is out of reach, so these cannot be downloaded now. Until it is back, `mlxq setup` keeps the "
            f"present stack, or sets up the built-in model ({BUILTIN})."
        )


def _this_machine(home: Home) -> tuple[Machine, list[Measured]]:
    """Return this machine, from the job database or inspected now, and what was measured on it."""
    local = catalog_list.here(home)
    if local.machine:
        return local.machine, local.measured
    from tasks.system import hardware

    render.say("Inspecting this machine.")
    return hardware.detect(), []


def _every(
    machine: Machine, models: Mapping[str, Model], benches: list[Measured], budget: int, *, as_json: bool
) -> None:
    """Show every model that fits the budget alone, in each quant that fits, best first."""
    local = Here(machine, benches)
    rows = [(*row, predicted(local, row[0], row[1])) for row in _fitting(models, budget)]
    if as_json:
        fitting = [
            {"model": model.id, "quant": quant, "memory_bytes": need, "speed": asdict(speed)}
            for model, quant, need, speed in rows
        ]
        render.data({"budget_bytes": budget, "models": fitting})
        return
    cells = [
        [model.id, quant, units.memory(need), recommendation.ranged(speed), recommendation.points(quality(model))]
        for model, quant, need, speed in rows
    ]
    render.table(["MODEL", "QUANT", "MEMORY", "TOK/S", "QUALITY"], cells, right=(2, 3))


def _fitting(models: Mapping[str, Model], budget: int) -> list[tuple[Model, str, int]]:
    """Return each model and quant that fits `budget` bytes alone, and what it needs, best first."""
    rows = [
        (model, quant, need)
        for model in models.values()
        for quant in catalog_list.by_size(model)
        if (need := memory(model, quant, SHOWN_CONTEXT).total) <= budget
    ]
    return sorted(rows, key=lambda row: -worth(row[0], row[1]))


def predicted(local: Here, model: Model, quant: str) -> Speed:
    """Return the speed on a machine that is known."""
    speed = local.speed(model, quant)
    assert speed
    return speed


def _available(home: Home, params: Mapping[str, Any], *, as_json: bool) -> None:
    """Show one page of what the Hub has, and whether it fits, as far as the size of the weights tells."""
    from mlxq import model_fit
    from tasks.weights import hub_search

    page, limit = params["page"] or 1, params["limit"] or 20
    results = hub_search.page(page, limit, search=params["search"], author=params["author"], tag=params["tag"])
    room = model_fit.room_of(home)
    if as_json:
        repos = [
            asdict(repo) | {"need_bytes": model_fit.repo_need(repo), "fits": model_fit.repo_fits(repo, room)}
            for repo in results.repos
        ]
        render.data({"page": page, "more": results.more, "models": repos})
        return
    if not results.repos:
        render.say("The Hub has no such MLX model.")
        return
    render.table(
        ["REPO", "KIND", "SIZE", "DOWNLOADS", "UPDATED", "FITS"],
        [
            [repo.name, repo.kind, repo.weights_bytes and units.files(repo.weights_bytes), repo.downloads, repo.updated,
             model_fit.repo_word(repo, room)]
            for repo in results.repos
        ],
        right=(2, 3),
    )  # fmt: skip
    if results.more:
        render.say(f"More results: --page {page + 1}.")
    render.next_step(f"mlxq pull {results.repos[0].name}")
