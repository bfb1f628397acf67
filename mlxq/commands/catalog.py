"""`mlxq catalog`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mlxq import options, render
from state.errors import MlxqError
from state.paths import get_home

if TYPE_CHECKING:
    from tasks.weights.catalog_check import CatalogFinding


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Validate the model catalog.

    The catalog ships with mlxq: `mlxq upgrade` updates it.
    """


@command.command()
@click.option("--offline", is_flag=True, help="Do not contact the Hub.")
@options.as_json
def check(*, offline: bool, as_json: bool) -> None:
    """Check the fields and the parsers of every model file.

    When the Hub is in reach, check the repositories too.
    """
    from tasks.weights import catalog_check, hub

    home = get_home()
    if not as_json:
        render.say("Checking files and parsers.")
    models, findings = catalog_check.files(home.catalog)
    findings += catalog_check.parsers(models)
    online = not offline and hub.hub_reachable()
    if online:
        render.say("Checking repositories on the Hub.")
        findings += catalog_check.repos(models)
    _report(len(models), findings, online=online, as_json=as_json)
    if wrong := sum(finding.wrong for finding in findings):
        raise MlxqError(f"The catalog has {wrong} {'error' if wrong == 1 else 'errors'}.")


def _report(count: int, findings: list[CatalogFinding], *, online: bool, as_json: bool) -> None:
    if as_json:
        render.data({"models": count, "hub_asked": online, "findings": [asdict(finding) for finding in findings]})
        return
    for finding in findings:
        click.echo(f"{finding.model}: {finding.problem}")
    models = "1 model" if count == 1 else f"{count} models"
    click.echo(f"{models} checked, {'with' if online else 'without'} the Hub.")
