"""`mlxq dashboard`."""

from __future__ import annotations

import time
import webbrowser
from http.client import HTTPConnection, HTTPException

import click

from mlxq import job_view, jobs_client, options, render
from mlxq.web import auth
from state import secrets, service, settings, stack
from state.errors import NotRunning
from state.paths import Home, get_home
from state.service import State
from tasks import kinds
from tasks.plan import page

PATIENCE_S = 1.0


@click.command()
@click.option("--no-open", is_flag=True, help="Print the link instead of opening a browser (for SSH).")
@options.timeout
def command(*, no_open: bool, timeout_s: float | None) -> None:
    """Open the web dashboard.

    The link works once, within a minute; the browser stays signed in for a month.
    """
    home = get_home()
    port = settings.load(home)["page-port"]
    if not port:
        raise NotRunning("The page is turned off.", hint="mlxq config reset page-port")
    if not _runs(home, port):
        with jobs_client.writing(home) as db:
            ids = jobs_client.enqueue(db, [kinds.new("start", {"service": page.SERVICE})])
        jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    link = f"http://127.0.0.1:{port}/enter?link={auth.link(secrets.ensure(home.secrets)[secrets.PAGE], time.time())}"
    if no_open or not webbrowser.open(link):
        click.echo(link)
        render.say("The link works once, within a minute.")
    else:
        render.say(f"Opened http://127.0.0.1:{port} in your browser.")


def _runs(home: Home, port: int) -> bool:
    """Return whether the page is running at its port; any listener there is not enough. Raises NotSetUp."""
    with jobs_client.reading(home) as db:
        stack.require(db)
        row = service.find(db, page.SERVICE)
    return row is not None and row.state == State.READY and row.port == port and _answers(port)


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", page.HEALTH)
        return connection.getresponse().status == 200  # noqa: PLR2004 (HTTP's OK)
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
