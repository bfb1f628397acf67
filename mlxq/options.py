"""Options and arguments that several commands share, with what completes them in a shell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from state import stack
from state.db import Database, read_database
from state.errors import MlxqError
from state.paths import get_home
from state.ports import BESIDE

Function = TypeVar("Function", bound=Callable[..., Any])
MEMORY = re.compile(r"(?P<number>\d{1,9}(\.\d{1,3})?)\s*(?P<unit>[mgt])i?b?")
UNITS = {"m": 2**20, "g": 2**30, "t": 2**40}
"""Bytes of each unit of memory; people write gb and mean what gib says (catalog/units.py)."""


class JobId(click.ParamType[int]):
    """The number of a job."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or say what it must be."""
        if not str(value).isdecimal() or len(str(value)) > 18:  # noqa: PLR2004 (SQLite's integers have 64 bits)
            self.fail(f"a job's id is a whole number, as `mlxq jobs` shows it, not {value!r}.", param, ctx)
        return int(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the newest jobs."""
        from mlxq.job_view import title
        from state.job import listing

        rows = _look(lambda db: [(str(job.id), f"{title(job)}, {job.state}") for job in listing(db)])
        return [CompletionItem(number, help=text) for number, text in rows if number.startswith(incomplete)]


class MemorySize(click.ParamType[int]):
    """A size of memory in bytes, as people write it: 30gb, 512mb, 24gib."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or say how it must be written."""
        found = MEMORY.fullmatch(str(value).strip().lower())
        if not found or float(found["number"]) == 0:
            self.fail(f"a size is a number above 0 with a unit, such as 30gb or 24gib, not {value!r}.", param, ctx)
        return int(float(found["number"]) * UNITS[found["unit"]])


class ModelName(click.ParamType[str]):
    """A model; what it is called by is answered by the catalog, the models folder or the Hub."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the catalog."""
        from catalog.load import entries

        found = sorted(entries().values(), key=lambda model: model.id)
        return [CompletionItem(each.id, help=each.name) for each in found if each.id.startswith(incomplete.lower())]


class InstalledName(ModelName):
    """A model whose weights are on this machine."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the models folder."""
        from mlxq import local_models
        from tasks import recommend

        place = get_home()
        try:
            there = local_models.listing(place, None, recommend.known(place))
        except MlxqError:
            return []
        return [CompletionItem(name) for name in sorted({one.model for one in there}) if name.startswith(incomplete)]


class Seconds(click.FloatRange):
    """A length of time."""

    name = "number of seconds"


def model(*, here: bool = False, required: bool = True) -> Callable[[Function], Function]:
    """Add the MODEL a command is about; `here`: its weights are on this machine."""
    kind = InstalledName() if here else ModelName()
    return click.argument("model", metavar="MODEL" if required else "[MODEL]", type=kind, required=required)


def tier(text: str) -> Callable[[Function], Function]:
    """Add --tier NAME."""
    return click.option("--tier", metavar="NAME", help=text, shell_complete=complete_tier)


def service(text: str) -> Callable[[Function], Function]:
    """Add --tier NAME to a command for which the gateway and the page have names too."""
    return click.option("--tier", metavar="NAME", help=text, shell_complete=complete_service)


def named(db: Database, name: str) -> str:
    """Give the service that is meant: a tier, or what runs beside the tiers. Raises NotFound."""
    return name if name in BESIDE else stack.tier(db, name).name


def tiers(flag: str, text: str) -> Callable[[Function], Function]:
    """Add an option that names tiers of the stack and may be given again."""
    return click.option(flag, multiple=True, metavar="TIER", help=text, shell_complete=complete_tier)


def timeout(function: Function) -> Function:
    """Add --timeout to a command that waits for jobs."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=Seconds(min=0),
        metavar="SECONDS",
        help="Stop waiting after this long; the jobs go on.",
    )(function)


def dry_run(function: Function) -> Function:
    """Add --dry-run to a command that starts or stops services."""
    return click.option("--dry-run", is_flag=True, help="Print what would be run, and do nothing.")(function)


def as_json(function: Function) -> Function:
    """Add --json to a command that prints data."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def job(name: str = "job", *, required: bool = True) -> Callable[[Function], Function]:
    """Add the ID of a job."""
    return click.argument(name, metavar="ID" if required else "[ID]", type=JobId(), required=required)


def complete_tier(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a tier, with its model."""
    rows = _look(lambda db: [(row["name"], row["model"]) for row in db.rows("SELECT name, model FROM tiers")])
    return [CompletionItem(name, help=model) for name, model in rows if name.startswith(incomplete)]


def complete_service(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a tier, or of what runs beside the tiers."""
    return complete_tier(ctx, param, incomplete) + [
        CompletionItem(name) for name in BESIDE if name.startswith(incomplete)
    ]


def _look(read: Callable[[Database], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Read for a completion: where nothing can be read, there is nothing to complete."""
    try:
        db = read_database(get_home())
        try:
            return read(db)
        finally:
            db.close()
    except MlxqError:
        return []
