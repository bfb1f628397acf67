"""`mlxq pull`."""

from __future__ import annotations

from pathlib import Path

import click

from catalog import units
from mlxq import job_view, jobs_client, model_ref, options, render
from mlxq.model_ref import ModelRef
from state import settings
from state.job import Job, JobState, NewJob
from state.paths import get_home
from tasks import kinds, recommend


@click.command()
@options.model()
@click.option("--quant", metavar="NAME", help="int4, int8, bf16, or another that exists.  [default: default-quant]")
@click.option("--revision", metavar="NAME", help="A commit, tag or branch of the Hub.")
@click.option("--bench", is_flag=True, help="Measure its speed afterwards, and keep the figures.")
@click.option("--force", is_flag=True, help="Fetch again what is here already.")
@click.option("--code", is_flag=True, help="Fetch Python files of the repo too; none is ever run.")
@click.option("--detach", is_flag=True, help="Put the job in and return.")
@options.timeout
@options.as_json
def command(
    model: str,
    *,
    quant: str | None,
    revision: str | None,
    bench: bool,
    force: bool,
    code: bool,
    detach: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Fetch the weights of a model: catalog id, repo or folder.

    Safe to break off and to run again: a fetch goes on where it was.
    """
    place = get_home()
    wanted = settings.load(place)
    found = model_ref.find(model, quant, recommend.known(place), wanted["default-quant"])
    for note in found.notes:
        render.say(note)
    if not detach:
        _announce(found, wanted.models(place), revision, force=force)
    args = {"source": found.source, "revision": revision, "force": force, "code": code}
    batch = [kinds.new("pull", args, label="pull")]
    if bench:
        batch.append(_bench(found))
    with jobs_client.writing(place) as db:
        ids = jobs_client.enqueue(db, batch)
    if detach:
        jobs_client.ensure_worker(place)
        _detached(ids, as_json=as_json)
        return
    ended = jobs_client.follow(place, jobs_client.these(ids), job_view.view(as_json=as_json), timeout_s=timeout_s)
    if not as_json:
        _tell(found, ended)


def _bench(found: ModelRef) -> NewJob:
    return kinds.new("bench", {"target": found.source, "save": True}, needs=["pull"])


def _announce(found: ModelRef, models: Path, revision: str | None, *, force: bool) -> None:
    """Say size, licence and gate before anything is fetched. Raises NotFound, Gated, Offline, Damaged."""
    from tasks.system.child import Later
    from tasks.weights import client, source

    asked = source.pinned(found.source, revision)
    if source.parse(asked).kind != "hub":
        _say_known(found)
        return
    if not force and client.here(asked, models):
        return
    render.say(f"Asking the Hub about {found.name}.")
    try:
        planned = client.plan_download(asked)
    except Later as later:
        render.say(f"{later.reason}; the job waits for it.")
        return
    gate = "gated, and your token opens it" if planned.gated else "open"
    render.say(f"{planned.repo}: {units.files(planned.size)}, licence {planned.licence or 'not named'}, {gate}.")
    if planned.notes:
        render.say("\n".join(planned.notes))


def _say_known(found: ModelRef) -> None:
    """Say of a model that lies elsewhere what the catalog knows."""
    if found.model and found.quant:
        size = units.files(found.model.quants[found.quant].bytes)
        render.say(f"{found.model.name}: {size}, licence {found.model.licence}, open.")


def _detached(ids: list[int], *, as_json: bool) -> None:
    if as_json:
        render.data({"jobs": ids})
        return
    render.say(f"Job {ids[0]} fetches it.")
    render.next_step(f"mlxq jobs watch {ids[0]}")


def _tell(found: ModelRef, ended: list[Job]) -> None:
    """Say where the weights are and what may come next."""
    result = next(job.result for job in ended if job.kind == "pull" and job.state is JobState.SUCCEEDED)
    for note in result["notes"]:
        render.say(note)
    words = "Fetched" if result["fetched"] else "Already here"
    click.echo(f"{words}: {result['folder']} ({units.files(result['bytes'])})")
    for job in ended:
        if job.kind == "bench":
            from mlxq.commands.bench import show

            show(job.result)
            return
    render.next_step(f"mlxq bench {found.name}")
