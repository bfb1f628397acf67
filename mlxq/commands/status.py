"""`mlxq status`, and what other commands show of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from catalog import units
from catalog.machine import planned
from mlxq import jobs_client, options, render, status_report
from mlxq.status_report import StatusReport
from state import wakeup
from state.errors import NotSetUp, UsageProblem
from state.paths import Home, get_home

LOOK_S = 2.0
"""How often --watch looks when nothing says that something changed."""


@click.command()
@click.option("--watch", "go_on", is_flag=True, help="Show it anew whenever it changes, until Ctrl-C.")
@click.option(
    "--simulate",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Show what mlxq would choose on the machine that was recorded in FILE.",
)
@options.as_json
def command(*, simulate: str | None, go_on: bool, as_json: bool) -> None:
    """Show the machine, the tiers and the gateway."""
    place = get_home()
    if simulate:
        _simulate(Path(simulate), as_json=as_json)
    elif go_on:
        live(place, _document if as_json else show)
    elif as_json:
        render.data(draw_once(place).document())
    else:
        show(draw_once(place))


def live(place: Home, show: Callable[[StatusReport], None], look_after: Callable[[], None] = lambda: None) -> None:
    """Show the report at every change and every LOOK_S seconds, until Ctrl-C; call `look_after` before each."""
    with wakeup.watcher(place) as bell:
        while True:
            look_after()
            click.clear()
            show(draw_once(place))
            bell.wait(LOOK_S)


def _document(found: StatusReport) -> None:
    render.line(found.document())


def show(found: StatusReport) -> None:
    """Show all of it to a person."""
    _machine(found)
    _services(found)
    _next(found)


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
    chosen = recommend.recommend(machine, recommend.known(get_home()), "balanced", budget(machine))
    if as_json:
        render.data(recommendation.document(machine, chosen))
        return
    click.echo(f"{machine_line(machine.as_row())}\n" + (f"{machine.note}\n" if machine.note else ""))
    recommendation.show(chosen, explain=False)


def overview() -> None:
    """Show what `mlxq` alone shows: the machine, the tiers, the next command."""
    try:
        found = draw_once(get_home())
    except NotSetUp:
        click.echo("mlxq: three models behind one endpoint, every operation a durable job.")
        click.echo("It is not set up here yet.")
        render.next_step("mlxq setup")
    else:
        show(found)


def brief(place: Home) -> None:
    """Show the services after a command changed them."""
    found = draw_once(place)
    _services(found)
    _next(found)


def welcome(place: Home) -> None:
    """Show what setup came to: the services, the endpoint, where the key is, a line to paste, and the next command."""
    found = draw_once(place)
    click.echo()
    _services(found)
    click.echo(f"\nEndpoint  {found.endpoint}")
    if place.secrets.exists():
        click.echo(f"Key       LITELLM_MASTER_KEY in {place.secrets}")
        click.echo('Paste     eval "$(mlxq connect env)"   (for OpenAI clients in this shell)')
    _next(found)


def draw_once(place: Home) -> StatusReport:
    """Give the report. Raises NotSetUp when there is nothing to tell of."""
    with jobs_client.reading(place) as db:
        found = status_report.collect(db)
    if not found.tiers and not found.services:
        raise NotSetUp(f"There is no stack in {place.root} yet.", hint=_begin(found))
    return found


def _begin(found: StatusReport) -> str:
    return f"mlxq jobs watch {found.jobs[0]}" if found.jobs else "mlxq setup"


def _machine(found: StatusReport) -> None:
    if found.machine:
        click.echo(machine_line(found.machine))
    click.echo(f"Endpoint  {found.endpoint}")
    if found.cloud["on"] or found.cloud["requests_today"]:
        click.echo(f"Cloud     {_cloud_line(found.cloud)}")
    click.echo(f"Worker    {_worker_line(found)}\n")


def machine_line(machine: dict[str, Any]) -> str:
    """Give the machine in one line."""
    memory, usable = machine.get("memory_bytes"), machine.get("usable_bytes")
    parts = [
        machine.get("chip"),
        f"{units.memory(memory)} memory",
        f"{units.memory(planned(usable, memory) if memory and usable else None)} of it for models",
        machine.get("os"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _cloud_line(cloud: dict[str, Any]) -> str:
    """Say whether requests may leave the machine, and how much of the day's money is gone."""
    state = f"{cloud['model']}, when no tier answers" if cloud["on"] else "off"
    count = f"{cloud['requests_today']} requests today"
    return f"{state}; {count}, ${cloud['usd_today']:.2f} of ${cloud['cap_usd']:.2f}"


def _worker_line(found: StatusReport) -> str:
    if found.worker.state == "running":
        return f"running (pid {found.worker.pid})"
    if found.worker.state == "hung":
        return f"hung (pid {found.worker.pid}): it lives and does nothing; what follows was looked at just now"
    if any(each["pid"] for each in found.services):
        return "stopped: nobody watches over the services; what follows was looked at just now"
    return "stopped; the next command that needs it starts it"


def _services(found: StatusReport) -> None:
    render.table(
        ["SERVICE", "STATE", "PORT", "PID", "UP", "MEMORY", "RESTARTS", "MODEL"],
        [_row(each) for each in found.services],
        right=(2, 3, 5, 6),
    )
    for name, cause, _ in found.troubles:
        click.echo(f"\n{name}: {cause}")


def _row(each: dict[str, Any]) -> list[Any]:
    memory = units.memory(each["memory_mb"] * status_report.MIB) if each["memory_mb"] else None
    up = render.span(each["uptime_s"])
    model = f"{each['model']} {each['quant']}" if each["model"] else None
    odd = each["phase"] not in {"ready", "stopped", each["state"]}
    state = f"{each['state']}, {each['phase']}" if odd else each["state"]
    return [each["name"], state, each["port"], each["pid"], up, memory, each["restarts"], model]


def _next(found: StatusReport) -> None:
    """Name the one command that helps most now."""
    hints = [hint for _, _, hint in found.troubles if hint]
    states = {each["state"] for each in found.services}
    if found.jobs:
        render.next_step(f"mlxq jobs watch {found.jobs[0]}")
    elif hints:
        render.next_step(hints[0])
    elif states - {"healthy"} or found.worker.state == "stopped":
        render.next_step("mlxq up")
    else:
        render.next_step('mlxq chat "What is the capital of France?"')
