"""`mlxq pull`."""

from __future__ import annotations

import click

from catalog import units
from mlxq import described, job_view, jobs_client, local_models, model_fit, model_ref, options, render
from mlxq.model_fit import Need
from mlxq.model_ref import ModelRef
from state import settings
from state.errors import DoesNotFit, MlxqError
from state.job import Job, JobState, NewJob
from state.paths import Home, get_home
from tasks import kinds, recommend


@click.command()
@options.model()
@click.option(
    "--quant", metavar="NAME", help="int4, int8, bf16, or another that exists.  [default: setting default-quant]"
)
@click.option("--revision", metavar="NAME", help="A commit, tag or branch on the Hub.")
@click.option("--bench", is_flag=True, help="Benchmark it afterwards and save the result.")
@click.option("--force", is_flag=True, help="Download even if it is installed, or does not fit.")
@click.option("--code", is_flag=True, help="Also download the repository's Python files; none is ever run.")
@click.option("--detach", is_flag=True, help="Queue the job and return immediately.")
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
    """Download a model.

    MODEL is a catalog id, a repository on the Hub, or a folder. An interrupted download resumes where it stopped.
    """
    home = get_home()
    chosen = settings.load(home)
    ref = model_ref.find(model, quant, recommend.all_models(home), chosen["default-quant"])
    for note in ref.notes:
        render.say(note)
    local_models.require_writable(home)
    if not detach:
        _require_room(home, ref, _announce(home, ref, revision, force=force), force=force)
    args = {"source": ref.source, "revision": revision, "force": force, "code": code}
    batch = [kinds.new("pull", args, label="pull")]
    if bench:
        batch.append(_bench(ref))
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, batch)
    if detach:
        jobs_client.ensure_worker(home)
        _detached(ids, as_json=as_json)
        return
    ended = jobs_client.follow(home, jobs_client.these(ids), job_view.view(as_json=as_json), timeout_s=timeout_s)
    if not as_json:
        _summarize(ref, ended)


def _bench(ref: ModelRef) -> NewJob:
    return kinds.new("bench", {"target": ref.source, "save": True}, needs=["pull"])


def _announce(home: Home, ref: ModelRef, revision: str | None, *, force: bool) -> Need | None:
    """Print size, license, access and memory before the download; return what serving it takes, where that is known.

    Raises NotFound, Gated, Offline, Damaged.
    """
    from tasks.system.child import Later
    from tasks.weights import client, source

    models = settings.load(home).models(home)
    pinned = source.pinned(ref.source, revision)
    if source.parse(pinned).kind != "hub":
        return _announce_known(home, ref)
    if not force and client.here(pinned, models):
        return None
    render.say(f"Looking up {ref.name} on the Hub.")
    try:
        planned = client.plan_download(pinned)
    except Later as later:
        render.say(f"{later.reason}; the job waits for it.")
        return None
    gate = "gated; your token has access" if planned.gated else "open"
    render.say(f"{planned.repo}: {units.files(planned.size)}, license {planned.licence or 'unknown'}, {gate}.")
    if planned.notes:
        render.say("\n".join(planned.notes))
    return _announce_need(home, ref, pinned)


def _announce_known(home: Home, ref: ModelRef) -> Need | None:
    """Print what the catalog knows of a model that is not on the Hub; return what serving it takes."""
    if ref.model and ref.quant:
        size = units.files(ref.model.quants[ref.quant].bytes)
        render.say(f"{ref.model.name}: {size}, license {ref.model.licence}, open.")
    return _announce_need(home, ref, ref.source)


def _announce_need(home: Home, ref: ModelRef, pinned: str) -> Need | None:
    """Print the memory that serving it takes, and whether that is here; what cannot be served is said by the job."""
    room = model_fit.room_of(home)
    limit = room.budget if room else None
    if ref.model and ref.quant in ref.model.quants:
        need, note = model_fit.need(ref.model, str(ref.quant), limit), None
    else:
        try:
            description = described.describe(home, pinned)
        except MlxqError as problem:
            render.say(problem.message)
            return None
        need, note = model_fit.need(description.model, description.quant, limit), description.row.get("note")
    render.say(model_fit.sentence(need, room))
    if note:
        render.say(str(note))
    return need


def _require_room(home: Home, ref: ModelRef, need: Need | None, *, force: bool) -> None:
    """Raise DoesNotFit before the download of a model that this machine cannot serve, unless it is forced."""
    room = model_fit.room_of(home)
    if force or need is None or room is None or need.fits_context != 0:
        return
    least, budget = units.apart(need.least_bytes or 0, room.budget)
    raise DoesNotFit(
        f"{ref.name} needs {least} with the smallest window, and models may use {budget} here.",
        done="Nothing was downloaded.",
        hint=f"mlxq pull {ref.name} --force",
    )


def _detached(ids: list[int], *, as_json: bool) -> None:
    if as_json:
        render.data({"jobs": ids})
        return
    render.say(f"Queued as job {ids[0]}.")
    render.next_step(f"mlxq jobs watch {ids[0]}")


def _summarize(ref: ModelRef, ended: list[Job]) -> None:
    """Print where the weights are and what to run next."""
    result = next(job.result for job in ended if job.kind == "pull" and job.state is JobState.SUCCEEDED)
    for note in result["notes"]:
        render.say(note)
    words = "Downloaded" if result["fetched"] else "Already installed"
    click.echo(f"{words}: {result['folder']} ({units.files(result['bytes'])})")
    for job in ended:
        if job.kind == "bench":
            from mlxq.commands.bench import show

            show(job.result)
            return
    render.next_step(f"mlxq bench {ref.name}")
