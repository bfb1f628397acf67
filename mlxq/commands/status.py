"""`mlxq status`, and what other commands show of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from catalog import units
from catalog.machine import planned
from mlxq import jobs_client, options, prompt_reuse, render, status_report
from mlxq.service_status import ASLEEP, ServiceStatus
from mlxq.status_report import StatusReport
from state.config.problem import ConfigProblem
from state.errors import NotSetUp, UsageProblem, not_set_up
from state.paths import Home, get_home
from state.service import Observed
from state.stack import Tier, served_by

LOOK_S = 2.0
"""How often --watch refreshes when nothing says that something changed."""


@click.command()
@click.option("--watch", "live_view", is_flag=True, help="Refresh at every change, until Ctrl-C.")
@click.option(
    "--simulate",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Show what mlxq would choose on the machine recorded in FILE.",
)
@options.as_json
def command(*, simulate: str | None, live_view: bool, as_json: bool) -> None:
    """Show the state of every service.

    A service is healthy, degraded, down, crashed or stopped; a reason follows where there is one. CACHED is the share
    of a tier's input that was not read again in the last seven days. THINKING is how long the model thinks before it
    answers, unless the request says otherwise. With --json the document is printed even if nothing is set up; the exit
    code is then 3.
    """
    home = get_home()
    if simulate:
        _simulate(Path(simulate), as_json=as_json)
    elif live_view:
        live(home, _line if as_json else show)
    elif as_json:
        _document(home)
    else:
        show(report(home))


def live(home: Home, show: Callable[[StatusReport], None], before: Callable[[], None] = lambda: None) -> None:
    """Show the report at every change and every LOOK_S seconds, until Ctrl-C; call `before` first each time."""
    from state import wakeup

    with wakeup.watcher(home) as bell:
        while True:
            before()
            click.clear()
            show(report(home))
            bell.wait(LOOK_S)


def _line(status: StatusReport) -> None:
    render.line(status.document())


def _document(home: Home) -> None:
    """Print the report for programs. Raises NotSetUp once it is printed, where there is no stack."""
    status = read(home)
    render.data(status.document())
    _require_setup(home, status)


def show(status: StatusReport) -> None:
    """Print the whole report."""
    _machine(status)
    _services(status)
    _next(status)


def _simulate(file: Path, *, as_json: bool) -> None:
    """Show another machine and what would serve there. Raises UsageProblem for a file that records none."""
    from catalog.machine import budget
    from mlxq.setup import recommendation
    from tasks import recommend
    from tasks.system.hardware import parse_fixture

    try:
        machine = parse_fixture(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UsageProblem(f"{file}: {problem}", hint="mlxq status --help") from problem
    chosen = recommend.recommend(machine, recommend.all_models(get_home()), "balanced", budget(machine))
    if as_json:
        render.data(recommendation.document(machine, chosen))
        return
    click.echo(f"{machine_line(machine.as_row())}\n" + (f"{machine.note}\n" if machine.note else ""))
    recommendation.show(chosen, explain=False)


def overview() -> None:
    """Show what `mlxq` alone shows: the machine, the services, the next command."""
    home = get_home()
    status = read(home)
    if status.is_set_up:
        show(status)
        return
    click.echo("mlxq: several models behind one endpoint, every operation a durable job.")
    click.echo("It is not set up here yet.")
    render.next_step(_first_step(status))


def brief(home: Home) -> None:
    """Show the services after a command changed them."""
    status = report(home)
    _services(status)
    _next(status)


def welcome(home: Home) -> None:
    """Show the result of setup: the services, the endpoint, where the key is, a line to paste, and the next command."""
    status = report(home)
    click.echo()
    _services(status)
    click.echo(f"\nEndpoint  {status.endpoint}")
    if home.secrets.exists():
        click.echo(f"Key       LITELLM_MASTER_KEY in {home.secrets}")
        click.echo('Paste     eval "$(mlxq connect env)"   (for OpenAI clients in this shell)')
    if offers := _offers():
        click.echo(f"Also      {' · '.join(offers)}")
    _next(status)


def _offers() -> list[str]:
    """Return the commands, with what each is for, that make mlxq start at login and the shell complete its words.

    None of what is there already.
    """
    from mlxq import autostart
    from mlxq.commands import completion

    units = [autostart.describe(system=system) for system in (False, True)]
    shell = Path(os.environ.get("SHELL", "")).name
    offers = [] if any(Path(autostart.path(unit)).exists() for unit in units) else ["mlxq install (start at login)"]
    if shell in completion.SHELLS and not completion.target(shell).exists():
        offers.append(f"mlxq completion {shell} --install (Tab)")
    return offers


def report(home: Home) -> StatusReport:
    """Return the report. Raises NotSetUp where there is no stack."""
    status = read(home)
    _require_setup(home, status)
    return status


def read(home: Home) -> StatusReport:
    """Return the report, also of a home where nothing is set up."""
    with suppress(NotSetUp), jobs_client.reading(home) as db:
        return status_report.collect(db)
    return status_report.empty(home)


def _require_setup(home: Home, status: StatusReport) -> None:
    if not status.is_set_up:
        raise not_set_up(home.root, _first_step(status))


def _first_step(status: StatusReport) -> str:
    jobs = _jobs_asked_for(status)
    return f"mlxq jobs watch {jobs[0]['id']}" if jobs else "mlxq setup"


def _jobs_asked_for(status: StatusReport) -> list[dict[str, Any]]:
    """Return the live jobs without those that the watchdog enqueues by itself: those that run, then those that wait."""
    jobs = [job for job in status.jobs if job["source"] != "watchdog"]
    return sorted(jobs, key=lambda job: job["state"] != "running")


def _machine(status: StatusReport) -> None:
    if status.machine:
        click.echo(machine_line(status.machine, status.budget_percent))
    click.echo(f"Endpoint  {status.endpoint}")
    if status.cloud["on"] or status.cloud["requests_today"]:
        click.echo(f"Cloud     {_cloud_line(status.cloud)}")
    click.echo(f"Worker    {_worker_line(status)}")
    if jobs := _jobs_asked_for(status):
        click.echo(f"Jobs      {_jobs_line(jobs)}")
    click.echo()


def machine_line(machine: dict[str, Any], percent: int | None = None) -> str:
    """Return the machine in one line; `percent` is the share of memory that models may use, None for all of it."""
    memory, usable = machine.get("memory_bytes"), machine.get("usable_bytes")
    parts = [
        machine.get("chip"),
        f"{units.memory(memory)} memory",
        f"{units.memory(planned(usable, memory, percent) if memory and usable else None)} usable for models",
        machine.get("os"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _cloud_line(cloud: dict[str, Any]) -> str:
    """Return whether requests may leave the machine, and how much of the daily budget is spent."""
    state = f"{cloud['model']}, when no tier is available" if cloud["on"] else "off"
    count = f"{cloud['requests_today']} requests today"
    return f"{state}; {count}, ${cloud['usd_today']:.2f} of ${cloud['cap_usd']:.2f}"


def _worker_line(status: StatusReport) -> str:
    if status.worker.state == "running":
        return f"running (pid {status.worker.pid})"
    if status.worker.state == "hung":
        reason = f" as its home cannot be written ({status.worker.unwritable})" if status.worker.unwritable else ""
        return f"hung (pid {status.worker.pid}): no heartbeat{reason}; the services were checked just now"
    if any(service["pid"] for service in status.services):
        return "stopped: nothing restarts a crashed service; the services were checked just now"
    return "stopped; the next command that needs it starts it"


def _jobs_line(jobs: Sequence[dict[str, Any]]) -> str:
    """Return the first of `jobs`, what it does now, and how many there are besides."""
    first, *waiting = jobs
    phase = f": {first['phase']}" if first["phase"] else ""
    more = f", and {len(waiting)} more" if waiting else ""
    return f"{first['kind'].replace('_', ' ')}{phase} (job {first['id']}){more}"


def _services(status: StatusReport) -> None:
    render.table(
        ["SERVICE", "STATE", "PORT", "PID", "UP", "MEMORY", "RESTARTS", "MODEL"],
        [row for service in status.services for row in _rows(status, service)],
        right=(2, 3, 5, 6),
    )
    _tiers(status)
    for name, phase in status.waiting:
        click.echo(f"\n{name} is asked for; it {phase or 'waits for the worker'}.")
    for name, cause, _ in status.troubles:
        click.echo(f"\n{name}: {cause}")
    _nodes(status)
    config(status.config)


def _nodes(status: StatusReport) -> None:
    """Show the other nodes of the fleet, where there are any."""
    if status.nodes:
        from mlxq.fleet import report

        click.echo()
        render.table(list(report.HEAD), report.rows(status.nodes), right=(3,))


def config(problems: Sequence[ConfigProblem]) -> None:
    """Show what is wrong with the files that users edit, what mlxq does instead, and the cure."""
    for problem in problems:
        click.echo()
        render.prose(f"{problem.message} {problem.done} Cure: {problem.hint}", "config: ")


def _rows(status: StatusReport, service: dict[str, Any]) -> list[list[Any]]:
    """Return the row of a service; of an engine, one for each of its tiers, the first with what is the process's."""
    tiers = served_by(status.tiers, service["name"])
    if not tiers:
        return [_row(service)]
    first, *sharing = tiers
    return [
        [first.name, _tier_status(status, first, service), *_row(service)[2:]],
        *([tier.name, _tier_status(status, tier, service), *[None] * 5, f"shares {first.name}"] for tier in sharing),
    ]


def _tier_status(status: StatusReport, tier: Tier, service: dict[str, Any]) -> str:
    """Return the state of a tier: that of its engine, unless the user stopped the tier."""
    return "stopped" if status.tier_state(tier) == Observed.STOPPED else _row(service)[1]


def _tiers(status: StatusReport) -> None:
    """Show which engine serves each tier, how long its model thinks, and how much of its prompts is not read again."""
    engines = {service["name"]: service["engine"] for service in status.services}
    rows = [
        [
            tier.name,
            engines.get(tier.engine.name),
            thinking(tier),
            status.reuse.get(tier.name, prompt_reuse.UNKNOWN).text,
            *([_tuning(status, tier)] if status.tunings else []),
        ]
        for tier in status.tiers
    ]
    if any(any(row[1:]) for row in rows):
        click.echo()
        render.table(["TIER", "ENGINE", "THINKING", "CACHED", *(["TUNING"] if status.tunings else [])], rows)


def _tuning(status: StatusReport, tier: Tier) -> str | None:
    used = status.tunings.get(tier.engine.name)
    return used.text if used else None


def thinking(tier: Tier) -> str | None:
    """Return how long a tier's model thinks where a request says nothing; None for one that cannot think."""
    if not tier.thinks:
        return None
    return f"up to {tier.defaults.thinking_budget} tokens" if tier.defaults.thinking else "off"


def _row(service: dict[str, Any]) -> list[Any]:
    memory = units.memory(service["memory_mb"] * status_report.MIB) if service["memory_mb"] else None
    model = f"{service['model']} {service['quant']}" if service["model"] else None
    status = ServiceStatus(Observed(service["state"]), service["reason"] or "", service["next_try_at"])
    return [
        *(service["name"], status.text(time.time()), service["port"], service["pid"]),
        *(render.span(service["uptime_s"]), memory, service["restarts"], model),
    ]


def _is_amiss(service: dict[str, Any]) -> bool:
    """Return whether a service does not serve; one that sleeps would."""
    return service["state"] != "healthy" and service["reason"] != ASLEEP


def _next(status: StatusReport) -> None:
    """Name the one command that helps most now."""
    hints = [hint for _, _, hint in status.troubles if hint]
    hints += [problem.hint for problem in status.config if not problem.warning]
    if jobs := _jobs_asked_for(status):
        render.next_step(f"mlxq jobs watch {jobs[0]['id']}")
    elif hints:
        render.next_step(hints[0])
    elif status.worker.state == "stopped" or any(map(_is_amiss, status.services)):
        render.next_step("mlxq up")
    else:
        render.next_step('mlxq chat "What is the capital of France?"')
