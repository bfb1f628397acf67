"""Options and arguments that several commands share, with what completes them in a shell."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from state.errors import MlxqError, NotFound, not_set_up
from state.paths import get_home

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from state.db import Database

Function = TypeVar("Function", bound=Callable[..., Any])
MEMORY = r"(?P<number>\d{1,9}(\.\d{1,3})?)\s*(?P<unit>[mgt])i?b?"
UNITS = {"m": 2**20, "g": 2**30, "t": 2**40}
"""Bytes of each unit of memory; people write gb and mean what gib says (catalog/units.py)."""


TIERS = (
    "SELECT tiers.name, engines.model FROM tiers JOIN engines ON engines.name = tiers.engine ORDER BY tiers.position"
)
DELETES = frozenset({"prune", "remove", "reset", "revoke"})
"""Commands of a group that are never suggested for a typing mistake."""


class Group(click.Group):
    """A group of commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that was typed. Raises NoSuchCommand with similar ones, none of which deletes."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as problem:
            safe = [name for name in self.commands if name not in DELETES]
            raise click.NoSuchCommand(problem.command_name, possibilities=safe, ctx=ctx) from None


class JobId(click.ParamType[int]):
    """The number of a job."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or say what it must be."""
        if not str(value).isdecimal() or len(str(value)) > 18:  # noqa: PLR2004 (SQLite's integers have 64 bits)
            self.fail(f"a job's id is a whole number, as `mlxq jobs` shows it, not {value!r}.", param, ctx)
        return int(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the newest jobs."""
        from click.shell_completion import CompletionItem

        from mlxq.job_view import title
        from state.job import listing

        rows = completions(lambda db: [(str(job.id), f"{title(job)}, {job.state}") for job in listing(db)])
        return [CompletionItem(number, help=text) for number, text in rows if number.startswith(incomplete)]


class MemorySize(click.ParamType[int]):
    """A size of memory in bytes, as people write it: 30gb, 512mb, 24gib."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, or say how a size must be written."""
        match = re.fullmatch(MEMORY, str(value).strip().lower())
        if not match or float(match["number"]) == 0:
            self.fail(f"a size is a number above 0 with a unit, such as 30gb or 24gib, not {value!r}.", param, ctx)
        return int(float(match["number"]) * UNITS[match["unit"]])


class ModelName(click.ParamType[str]):
    """A model; the catalog, the models folder or the Hub says which one a name means."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the catalog."""
        from click.shell_completion import CompletionItem

        from catalog.load import entries

        models = sorted(entries().values(), key=lambda model: model.id)
        return [
            CompletionItem(model.id, help=model.name) for model in models if model.id.startswith(incomplete.lower())
        ]


class InstalledName(ModelName):
    """A model whose weights are on this machine."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the models folder."""
        from click.shell_completion import CompletionItem

        from mlxq import local_models
        from tasks import recommend

        home = get_home()
        try:
            installed = local_models.listing(home, None, recommend.all_models(home))
        except MlxqError:
            return []
        return [
            CompletionItem(name) for name in sorted({row.model for row in installed}) if name.startswith(incomplete)
        ]


class Seconds(click.FloatRange):
    """A length of time."""

    name = "number of seconds"


def model(*, installed: bool = False, required: bool = True) -> Callable[[Function], Function]:
    """Add the MODEL a command is about; `installed`: its weights are on this machine."""
    kind = InstalledName() if installed else ModelName()
    return click.argument("model", metavar="MODEL" if required else "[MODEL]", type=kind, required=required)


def tier(text: str) -> Callable[[Function], Function]:
    """Add --tier NAME."""
    return click.option("--tier", metavar="NAME", help=text, shell_complete=complete_tier)


def services(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add [SERVICE]..., which arrives as `names`; --tier NAME is a hidden second way to name one."""

    @click.argument("names", metavar="[SERVICE]...", nargs=-1, shell_complete=complete_service)
    @click.option("--tier", "tiers", multiple=True, hidden=True, shell_complete=complete_service)
    @functools.wraps(function)
    def merged(*, names: tuple[str, ...], tiers: tuple[str, ...], **options: Any) -> Any:
        return function(names=list(dict.fromkeys((*names, *tiers))), **options)

    return merged


def service_name(function: Function) -> Function:
    """Add [SERVICE], which arrives as `name`."""
    return click.argument("name", metavar="[SERVICE]", required=False, shell_complete=complete_service)(function)


LOADED = "SELECT name FROM models WHERE name IN (SELECT name FROM services)"
"""Engines of models on demand that are loaded."""


def check_services(db: Database, names: Sequence[str]) -> None:
    """Raise NotFound for a name that is no service; NotSetUp where there is no stack."""
    from state import stack
    from state.ports import BESIDE

    tiers = [tier.name for tier in stack.tiers(db)]
    beside = [*(engine.name for engine in stack.retrieval(db)), *BESIDE]
    existing = [*tiers, *beside, *(row["name"] for row in db.rows(LOADED))] if tiers else [*BESIDE]
    for name in names:
        if len(existing) == len(BESIDE):
            raise not_set_up(db.home.root)
        if name not in existing:
            raise NotFound(f"There is no service {name!r}; there is: {', '.join(existing)}.", hint="mlxq status")


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
        help="Stop waiting after this long; the jobs continue.",
    )(function)


def dry_run(function: Function) -> Function:
    """Add --dry-run to a command that changes something."""
    return click.option("--dry-run", "-n", is_flag=True, help="Show what would be done, and do nothing.")(function)


def yes(function: Function) -> Function:
    """Add --yes to a command that asks before it acts."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")(function)


def as_json(function: Function) -> Function:
    """Add --json to a command that prints data."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def job(name: str = "job", *, required: bool = True) -> Callable[[Function], Function]:
    """Add the ID of a job."""
    return click.argument(name, metavar="ID" if required else "[ID]", type=JobId(), required=required)


def complete_tier(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a tier, with its model."""
    from click.shell_completion import CompletionItem

    rows = completions(lambda db: [(row["name"], row["model"]) for row in db.rows(TIERS)])
    return [CompletionItem(name, help=model) for name, model in rows if name.startswith(incomplete)]


def complete_service(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a service."""
    from click.shell_completion import CompletionItem

    from state.ports import BESIDE

    return complete_tier(ctx, param, incomplete) + [
        CompletionItem(name) for name in BESIDE if name.startswith(incomplete)
    ]


def completions(query: Callable[[Database], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Run a query for a completion: where nothing can be read, there is nothing to complete."""
    from state.db import read_database

    try:
        db = read_database(get_home())
        try:
            return query(db)
        finally:
            db.close()
    except MlxqError:
        return []
