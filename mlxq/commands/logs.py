"""`mlxq logs`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import click
from click.shell_completion import CompletionItem

from catalog import units
from mlxq import job_view, jobs_client, options, render
from state import stack
from state.errors import MlxqError, NotFound, NotSetUp, UsageProblem
from state.paths import Home, get_home
from tasks import kinds

if TYPE_CHECKING:
    from gzip import GzipFile

CHUNK = 2**16
LOOK_S = 0.25
"""How often --follow looks for more."""
WORKER = "worker"
"""The name of the worker's log."""


class LogName(click.ParamType[str]):
    """The name of a log: a service, or the worker."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the logs there are."""
        return [CompletionItem(name) for name in names(get_home()) if name.startswith(incomplete)]


@click.command()
@click.argument("name", type=LogName(), required=False)
@click.option(
    "-n",
    "--tail",
    "count",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="N",
    help="Number of lines.",
)
@click.option("--all", "everything", is_flag=True, help="Print the whole log, rotated files first.")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they are written, until Ctrl-C.")
@click.option("--rotate", is_flag=True, help="Rotate the log now; without NAME, every log that is too large.")
@click.option("--service", "worker", is_flag=True, hidden=True)
@options.as_json
def command(
    name: str | None, count: int, *, everything: bool, follow: bool, rotate: bool, worker: bool, as_json: bool
) -> None:
    """Print logs.

    NAME is a tier, `gateway`, `page`, or `worker`. Without NAME, list the logs.
    """
    home = get_home()
    name = name or (WORKER if worker else None)
    if as_json and (rotate or everything):
        raise UsageProblem("--json goes with neither --all nor --rotate.", hint="mlxq logs --help")
    if name:
        name = _log_of(home, name)
        find(home, name)
    if rotate:
        _rotate(home, name)
    elif name is None:
        _list(home, as_json=as_json)
    elif everything:
        _print_all(home.log(name))
    else:
        _print(home.log(name), count, _show_json if as_json else _show, follow=follow)


def _rotate(home: Home, name: str | None) -> None:
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, [kinds.new("rotate", {"name": name})])
    (done,) = jobs_client.follow(home, jobs_client.these(ids), job_view.view())
    rotated: dict[str, int] = done.result["rotated"]
    for log, size in rotated.items():
        click.echo(f"Rotated {log}: {units.files(size)}.")
    if not rotated:
        click.echo("No log is too large.")


def _print_all(log: Path) -> None:
    import gzip

    from tasks.system.log_rotation import archives

    for archive in reversed(archives(log)):
        with gzip.open(archive) as file:
            _copy(file)
    with log.open("rb") as file:
        _copy(file)


def _copy(file: BinaryIO | GzipFile) -> None:
    """Write a log to stdout: every byte to a pipe, text to a terminal."""
    import shutil

    if not sys.stdout.isatty():
        shutil.copyfileobj(file, sys.stdout.buffer)
        return
    for line in file:
        click.echo(line.decode(errors="replace"), nl=False)


def _show(text: str) -> None:
    click.echo(text, nl=False)


def _show_json(text: str) -> None:
    for line in text.splitlines():
        render.line({"line": line})


def _print(log: Path, count: int, show: Callable[[str], None], *, follow: bool) -> None:
    with log.open("rb") as file:
        _seek_back(file, count)
        while True:
            show(file.read().decode(errors="replace"))
            if not follow:
                return
            time.sleep(LOOK_S)
            if log.stat().st_size < file.tell():  # it was rotated
                file.seek(0)


def _seek_back(file: IO[bytes], count: int) -> None:
    """Seek to where the last `count` lines begin, reading little more of the file than those."""
    end = file.seek(0, os.SEEK_END)
    size, tail = CHUNK, b""
    while len(tail) < end and tail.count(b"\n") <= count:
        file.seek(max(0, end - size))
        tail = file.read(size)
        size *= 2
    last = tail.splitlines(keepends=True)[-count:] if count else []
    file.seek(end - sum(map(len, last)))


def names(home: Home) -> list[str]:
    """Return the names of the logs there are."""
    return sorted(path.stem for path in home.logs.glob("*.log"))


def _log_of(home: Home, name: str) -> str:
    """Return the name of a log: a tier's is that of its engine, which may write for others too."""
    with suppress(MlxqError), jobs_client.reading(home) as db:
        return stack.services(stack.tiers(db), [name])[0]
    return name


def find(home: Home, name: str) -> Path:
    """Return the log of that name. Raises NotFound with the names there are, NotSetUp; a name is never a path."""
    existing = _existing(home)
    if name not in existing:
        raise NotFound(f"There is no log {name!r}; there is: {', '.join(existing)}.", hint="mlxq logs")
    return home.log(name)


def _existing(home: Home) -> list[str]:
    """Return the names of the logs there are. Raises NotSetUp when there is none."""
    if existing := names(home):
        return existing
    raise NotSetUp(f"There are no logs in {home.root} yet.", hint="mlxq setup")


def _document(home: Home, name: str) -> dict[str, Any]:
    stat = home.log(name).stat()
    return {"name": name, "path": str(home.log(name)), "size_bytes": stat.st_size, "written_at": stat.st_mtime}


def _list(home: Home, *, as_json: bool) -> None:
    existing = _existing(home)
    stats = {name: home.log(name).stat() for name in existing}
    if as_json:
        render.data({"logs": [_document(home, name) for name in existing]})
        return
    render.table(
        ["LOG", "SIZE", "WRITTEN"],
        [[name, units.files(stat.st_size), render.ago(stat.st_mtime)] for name, stat in stats.items()],
        right=(1,),
    )
    render.next_step(f"mlxq logs {existing[0]} -f")
