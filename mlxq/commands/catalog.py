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


@click.group(no_args_is_help=True)
def command() -> None:
    """Check the models mlxq knows."""


@command.command()
@click.option("--offline", is_flag=True, help="Do not ask the Hub.")
@options.as_json
def check(*, offline: bool, as_json: bool) -> None:
    """Check every model file: its fields and its parsers.

    Its repos are looked up too when the Hub is in reach.
    """
    from tasks.weights import catalog_check, hub

    place = get_home()
    if not as_json:
        render.say("Checking the files and the parsers.")
    models, findings = catalog_check.files(place.catalog)
    findings += catalog_check.parsers(models)
    asked = not offline and hub.hub_reachable()
    if asked:
        render.say("Asking the Hub for every repo.")
        findings += catalog_check.repos(models)
    _tell(len(models), findings, asked=asked, as_json=as_json)
    if wrong := sum(finding.wrong for finding in findings):
        raise MlxqError(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong with the catalog.")


def _tell(count: int, findings: list[CatalogFinding], *, asked: bool, as_json: bool) -> None:
    if as_json:
        render.data({"models": count, "hub_asked": asked, "findings": [asdict(each) for each in findings]})
        return
    for each in findings:
        click.echo(f"{each.model}: {each.problem}")
    models = "1 model" if count == 1 else f"{count} models"
    click.echo(f"{models} checked; the Hub was {'asked' if asked else 'not asked'}.")
