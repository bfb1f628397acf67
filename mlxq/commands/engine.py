"""`mlxq engine`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from catalog import units
from catalog.engines import FALLBACK, EngineEntry, entries
from mlxq import job_view, jobs_client, options, render
from state import job as jobs
from state import service, settings, stack
from state.db import Database
from state.errors import EngineFailed, NotFound, UsageProblem
from state.job import LIVE, Job, NewJob
from state.paths import Home, get_home
from tasks import kinds

if TYPE_CHECKING:
    from tasks.engines.base import Installation

MB = 1_000_000
INSTALLS = ("add_engine", "install_engine", "upgrade_engine")


class EngineName(click.ParamType[str]):
    """The name of an engine."""

    name = "engine"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the engines that mlxq knows."""
        return [CompletionItem(name) for name in entries() if name.startswith(incomplete)]


@click.group(no_args_is_help=True)
def command() -> None:
    """Install engines and choose which one to use.

    An engine is the program that serves a model. A checkout always has vllm-mlx; every other engine has an environment
    of its own below MLXQ_HOME/engines. With `engine: auto` each model gets an engine that reuses its prompts.
    """


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List engines, their versions and their tiers."""
    home = get_home()
    rows = _rows(home)
    if as_json:
        render.data({"engine": settings.load(home)["engine"], "engines": rows})
        return
    render.table(
        ["ENGINE", "VERSION", "STATE", "SIZE", "READS A PROMPT ONCE", "TIERS"],
        [[row["engine"], row["version"], row["state"], _size(row), _kinds(row), _tiers(row)] for row in rows],
        right=(3,),
    )
    _next_step(rows)


def _next_step(rows: list[dict[str, Any]]) -> None:
    coming = next((row for row in rows if row["job"]), None)
    missing = next((row for row in rows if row["state"] == "not installed"), None)
    if coming:
        render.next_step(f"mlxq jobs watch {coming['job']}")
    elif missing:
        render.next_step(f"mlxq engine install {missing['engine']}")


@command.command()
@click.argument("engine", type=EngineName())
@click.option(
    "--version", metavar="V", help="Install this version and use it.  [default: the one mlxq was tested with]"
)
@click.option("--force", is_flag=True, help="Rebuild its environment.")
@options.timeout
@options.as_json
def install(engine: str, *, version: str | None, force: bool, timeout_s: float | None, as_json: bool) -> None:
    """Install ENGINE and test it on the built-in model.

    Its packages come from the package index and must match the hashes that ship with mlxq. Tiers that it serves best
    switch to it one after another.
    """
    from tasks.engines import install as installation

    entry = installable(engine)
    installation.lock(get_home().engines, engine, version or entry.version)
    if not as_json and (force or not _is_here(engine, version or entry.version)):
        _announce(entry, f"{engine} {version or entry.version}")
    job = _run(
        kinds.new("install_engine", {"engine": engine, "version": version, "force": force}),
        timeout_s=timeout_s,
        as_json=as_json,
    )
    if not as_json:
        _tell_installed(job.result)


@command.command()
@click.argument("engine", type=EngineName())
@click.option("--tier", metavar="NAME", help="Only for this tier.")
@options.timeout
def use(engine: str, *, tier: str | None, timeout_s: float | None) -> None:
    """Serve all tiers, or one, with ENGINE, or with `auto`.

    `auto` lets mlxq choose. The tiers that change restart one after another while the others keep serving.
    """
    home = get_home()
    if engine not in (settings.AUTO, *entries()):
        raise UsageProblem(f"There is no engine {engine!r}; there is: auto, {', '.join(entries())}.")
    _require(home, engine)
    tiers = _sharing(home, tier) if tier else []
    _clear_faults(home, engine, tier)
    if tiers:
        settings.change(home, "tier-engines", lambda now: dict(now) | dict.fromkeys(tiers, engine))
    else:
        settings.write(home, "engine", engine)
    _go_over(home, timeout_s)


@command.command()
@click.argument("engine", type=EngineName())
@click.argument("version")
@options.timeout
def remove(engine: str, version: str, *, timeout_s: float | None) -> None:
    """Delete an unused VERSION of ENGINE."""
    job = _run(kinds.new("remove_engine", {"engine": engine, "version": version}), timeout_s=timeout_s)
    render.say(f"{engine} {version} is gone; {units.files(job.result['bytes'])} are free again.")


@command.command()
@click.argument("engine", type=EngineName(), default="rapid-mlx")
@click.option("--check", is_flag=True, help="Show whether there is a newer version; install nothing.")
@options.timeout
@options.as_json
def upgrade(engine: str, *, check: bool, timeout_s: float | None, as_json: bool) -> None:
    """Install the newest known version of ENGINE.

    It is installed next to the old one, passes a smoke test, and is used unless it is slower on this machine. The tiers
    switch to it one after another while the others keep serving; if one of them does not serve, the old version is used
    again.
    """
    installable(engine)
    if check:
        _check(engine, as_json=as_json)
        return
    job = _run(kinds.new("upgrade_engine", {"engine": engine}), timeout_s=timeout_s)
    taken_back = _failure(get_home(), engine, job.result["version"]) if job.result["used"] else None
    if as_json:
        render.data(job.result | {"taken_back": taken_back})
    else:
        _tell_upgraded(job.result, taken_back)


@command.command()
@click.argument("engine", type=EngineName(), default="rapid-mlx")
@options.timeout
def rollback(engine: str, *, timeout_s: float | None) -> None:
    """Go back to the previous version of ENGINE.

    Without a previous version, vllm-mlx serves its tiers.
    """
    job = _run(
        kinds.new("rollback_engine", {"engine": engine, "version": _version_in_use(engine)}), timeout_s=timeout_s
    )
    render.say(f"{engine} {job.result['version']} is not used any more; {job.result['now']} is.")


def _version_in_use(engine: str) -> str:
    """Return the version to be taken back: a job that is run again after a crash must not take the next one back too.

    Raises NotFound where none is in use.
    """
    from tasks.engines import installed

    with jobs_client.reading(get_home()) as db:
        version = installed.wish(db, engine).version
    if version is None:
        raise NotFound(f"No version of {engine} is in use.", hint="mlxq engine list")
    return version


def installable(engine: str) -> EngineEntry:
    """Return the entry of an engine that can be installed. Raises UsageProblem."""
    from tasks.engines import installed

    names = installed.installable()
    if engine not in names:
        raise UsageProblem(f"{engine} cannot be installed; {', '.join(names)} can.", hint="mlxq engine list")
    return entries()[engine]


def _announce(entry: EngineEntry, release: str) -> None:
    size, fetch = units.files(entry.installed_mb * MB), units.files(entry.download_mb * MB)
    render.say(f"{release}: about {fetch} to download, {size} in {get_home().engines}.")


def _is_here(engine: str, version: str) -> bool:
    from tasks.engines import installed

    return any(
        (release.installation.engine, release.installation.version, release.whole) == (engine, version, True)
        for release in installed.releases(get_home())
    )


def _clear_faults(home: Home, engine: str, tier: str | None) -> None:
    """Forget with which models an engine failed, or with one tier's alone: the user wants it tried."""
    from tasks.engines import faults

    if not home.database.exists():
        return
    with jobs_client.writing(home) as db:
        source = stack.tier(db, tier).engine.source if tier else None
        for name in entries() if engine == settings.AUTO else [engine]:
            faults.clear(db, name, source)


def _failure(home: Home, engine: str, version: str) -> str | None:
    """Return why a version was taken back; None for one that was not."""
    from tasks.engines import installed

    with jobs_client.reading(home) as db:
        return installed.wish(db, engine).bad.get(version)


def _require(home: Home, engine: str) -> None:
    """Raise NotFound for an engine that is not here, EngineFailed for one of which every version was taken back."""
    from tasks.engines import installed

    if engine == settings.AUTO:
        return
    if all(release.installation.engine != engine for release in installed.releases(home)):
        raise NotFound(f"{engine} is not installed here.", hint=f"mlxq engine install {engine}")
    _refuse_taken_back(home, engine)


def _refuse_taken_back(home: Home, engine: str) -> None:
    from tasks.engines import installed

    used, _, bad = _in_use(home)
    if all(installation.engine != engine for installation in used) and (failures := bad.get(engine)):
        version = max(failures, key=installed.order)
        raise EngineFailed(
            f"{engine} {version} was taken back: {failures[version]}.",
            done="Nothing was changed.",
            hint=f"mlxq engine install {engine} --version {version}",
        )


def _run(new: NewJob, *, timeout_s: float | None, as_json: bool = False) -> Job:
    home = get_home()
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, [new])
    view = job_view.view(as_json=as_json)
    ended = jobs_client.follow(home, jobs_client.with_chains(ids), view, timeout_s=timeout_s)
    job = next(row for row in ended if row.id == ids[0])
    if as_json:
        render.data(job.result)
    return job


def _sharing(home: Home, name: str) -> list[str]:
    """Return the tier `name` and those that its engine serves too, which are named to the user. Raises NotFound."""
    with jobs_client.reading(home) as db:
        tier = stack.tier(db, name)
        sharing = [other.name for other in stack.served_by(stack.tiers(db), tier.engine.name) if other.name != name]
    if sharing:
        render.say(f"{units.listed(sharing)} change with {name}: one engine serves them.")
    return [name, *sharing]


def _go_over(home: Home, timeout_s: float | None) -> None:
    """Restart the tiers whose engine is another one now."""
    from tasks.stack_jobs import engine_changes

    with jobs_client.writing(home) as db:
        jobs = engine_changes(db, home)
        ids = jobs_client.enqueue(db, jobs) if jobs else []
    if not ids:
        render.say("No tier that runs has to change.")
        return
    jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    from mlxq.commands import status

    status.brief(home)


def _rows(home: Home) -> list[dict[str, Any]]:
    """Return a row for each version that is here, and for each engine that is not."""
    from tasks.engines import installed

    used, running, bad = _in_use(home)
    rows: list[dict[str, Any]] = []
    for release in installed.releases(home):
        installation = release.installation
        state = "used" if installation in used else "broken" if not release.whole else "installed"
        failure = bad.get(installation.engine, {}).get(installation.version)
        columns = {
            "engine": installation.engine,
            "version": installation.version,
            "state": "taken back" if failure else state,
            "failure": failure,
            "bytes": release.proof.get("size_bytes"),
            "job": None,
        }
        rows.append(columns | {"tiers": running.get(installation.name, []), "reuse": _reuse(installation.engine)})
    present = {row["engine"] for row in rows}
    return rows + [
        row | {"tiers": running.get(f"{row['engine']} {row['version']}", [])} for row in _absent(home, present)
    ]


def _absent(home: Home, present: set[str]) -> list[dict[str, Any]]:
    """Return a row for each engine of which no version is here; one whose folder was deleted may still run."""
    installing = _installing(home)
    return [
        {
            "engine": name,
            "version": entry.version,
            "state": "installing" if name in installing else "not installed",
            "failure": None,
            "job": installing.get(name),
            "bytes": entry.installed_mb * MB,
            "tiers": [],
            "reuse": _reuse(name),
        }
        for name, entry in entries().items()
        if name not in present
    ]


def _installing(home: Home) -> dict[str, int]:
    """Return the engines that jobs install now, or are about to, and the jobs' ids."""
    if not home.database.exists():
        return {}
    with jobs_client.reading(home) as db:
        live = [row for kind in INSTALLS for state in LIVE for row in jobs.listing(db, kind=kind, state=state)]
    return {str(row.args["engine"]): row.id for row in live}


def _in_use(home: Home) -> tuple[list[Installation], dict[str, list[str]], dict[str, Mapping[str, str]]]:
    """Return what is used, the tiers that run on each release, and the versions that failed; before setup too."""
    from tasks.engines import installed

    if not home.database.exists():
        return [installed.fallback(home)], {}, {}
    with jobs_client.reading(home) as db:
        bad = {name: installed.wish(db, name).bad for name in entries()}
        return installed.used(db, home), _running(db), bad


def _running(db: Database) -> dict[str, list[str]]:
    """Return the tiers that run on each release."""
    tiers: dict[str, list[str]] = {}
    for row in service.listing(db):
        if row.kind == "engine" and row.pid:
            tiers.setdefault(row.release or FALLBACK, []).append(row.name)
    return tiers


def _reuse(engine: str) -> list[str]:
    return [str(kind) for kind, reuse in entries()[engine].reuse.items() if reuse.turn]


def _size(row: dict[str, Any]) -> str:
    return units.files(row["bytes"]) if row["bytes"] else "with mlxq"


def _kinds(row: dict[str, Any]) -> str:
    """Say of which models an engine reads a prompt once."""
    return "every model" if len(row["reuse"]) == len(entries()[row["engine"]].reuse) else "not of hybrids"


def _tiers(row: dict[str, Any]) -> str | None:
    return ", ".join(row["tiers"]) or None


def _tell_installed(result: dict[str, Any]) -> None:
    proof = result["proof"]
    words = "Installed and proven" if result["installed"] else "Here already"
    click.echo(
        f"{words}: {result['engine']} {result['version']}, {units.files(proof['size_bytes'])}. It starts in "
        f"{proof['start_s']:.1f} s{_read_again(proof['reused'])}."
    )
    if result["tiers"]:
        click.echo(f"Serves now: {', '.join(result['tiers'])}.")
    render.next_step("mlxq engine list")


def _read_again(reused: float | None) -> str:
    return (
        "; how much of a prompt it reads again is still to be measured"
        if reused is None
        else (f" and read {1 - reused:.0%} of a prompt again")
    )


def _check(engine: str, *, as_json: bool) -> None:
    from tasks.engines import install

    home = get_home()
    used, _, bad = _in_use(home)
    now = next((installation.version for installation in used if installation.engine == engine), None)
    newest = install.versions(home.engines, engine)[-1]
    failure = bad.get(engine, {}).get(newest)
    newer = now != newest and failure is None
    if as_json:
        render.data({"engine": engine, "used": now, "newest": newest, "newer": newer, "failure": failure})
    elif newer:
        render.say(f"{engine} {newest} can be installed; {now or 'none'} is used.")
        render.next_step(f"mlxq engine upgrade {engine}")
    elif failure:
        render.say(f"{engine} {newest} was taken back: {failure}. {now or FALLBACK} is used.")
    else:
        render.say(f"{engine} {now} is the newest that this mlxq knows.")


def _release(engine: str, version: str | None) -> str:
    """Return a release's name; that of the engine that serves where no version of this one is used."""
    return f"{engine} {version}" if version else FALLBACK


def _tell_upgraded(result: dict[str, Any], taken_back: str | None) -> None:
    """Print what an upgrade came to. Raises EngineFailed for a version on which a tier did not serve."""
    engine, version, before = result["engine"], result["version"], result["before"]
    if taken_back:
        raise EngineFailed(
            f"{engine} {version} was taken back: {taken_back}.",
            done=f"{_release(engine, before)} serves again.",
            hint="mlxq why",
        )
    speeds = ", ".join(f"{name} writes {speed['decode_tps']:.1f} tokens/s" for name, speed in result["speeds"].items())
    if result["used"] and before == version:
        click.echo(f"{engine} {version} is the newest that this mlxq knows, and was used already.")
    elif result["used"]:
        click.echo(f"{engine} {version} is used now." + (f" On the built-in model {speeds}." if speeds else ""))
    else:
        click.echo(f"{_release(engine, before)} stays, because {version} was taken back: {result['why']}.")
    render.next_step("mlxq engine list")
