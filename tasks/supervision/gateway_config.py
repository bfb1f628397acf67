"""The gateway's configuration file, generated from the stack and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from state import event, files, ledger, settings, stack
from state import service as rows
from state.config import mapping
from state.config import text as content
from state.db import Database
from state.errors import MlxqError
from state.paths import Home
from state.stack import Engine, Tier
from tasks.engines import serving
from tasks.kinds import new
from tasks.plan import gateway, retrieval
from tasks.runtime import log

BEFORE_RELAY = "litellm.yaml"
"""The configuration of the LiteLLM proxy, which was the gateway once. Nothing reads it any more."""


def wanted(
    home: Home,
    tiers: Sequence[Tier],
    programs: Mapping[str, str] | None = None,
    templates: Mapping[str, Mapping[str, Any]] | None = None,
    engines: Sequence[Engine] = (),
) -> dict[str, Any]:
    """Return gateway.yaml's content for these tiers and the settings as they are. Raises UsageProblem, Damaged.

    `engines`: those that are not for chats.
    """
    values = settings.load(home)
    cloud_model: str | None = values["openrouter-model"] if values["openrouter-key"] else None
    return gateway.configuration(
        stack.with_defaults(tiers, values),
        cloud_model=cloud_model,
        aliases=gateway.aliases(values["aliases"], tiers, engines),
        allowed_origins=values["allowed-origins"],
        remote_images=values["allow-remote-images"],
        programs=programs,
        templates=templates,
        retrieval=retrieval.configuration(engines, values["aliases"]),
    )


def wanted_text(db: Database, home: Home, tiers: Sequence[Tier]) -> str:
    """Return `wanted` as YAML; the same stack and settings give the same bytes. Raises UsageProblem, Damaged."""
    import yaml

    engines = stack.engines_of(tiers)
    programs, templates = serving.programs(db, home, engines), serving.templates(home, engines)
    return yaml.safe_dump(wanted(home, tiers, programs, templates, stack.retrieval(db)), sort_keys=False)


def is_current(home: Home, text: str) -> bool:
    """Return whether gateway.yaml is there, can be read, and says this."""
    try:
        return home.gateway_config.read_bytes() == text.encode()
    except OSError:
        return False


def write_missing(db: Database, home: Home) -> None:
    """Write gateway.yaml where there is none but a stack, or one that the gateway could not read.

    It is missing in a home of an older version, or one restored from a backup. An older version's is replaced; one
    that is damaged is moved aside. Raises UsageProblem, Damaged.
    """
    tiers = stack.tiers(db)
    if not tiers or _readable(home):
        return
    if not _of_older_version(home) and (aside := files.set_aside(home.gateway_config)):
        log.warning("configuration_rewritten", damaged=str(aside))
        event.record(db, "configuration_rewritten", service=gateway.SERVICE, cause=f"The damaged one is {aside}.")
    settings.write_private(home.gateway_config, wanted_text(db, home, tiers))
    remove_old(home)


def is_written(db: Database, home: Home, *, always: bool) -> bool:
    """Return whether a start of the gateway writes gateway.yaml: a missing one, and with `always` one that changes.

    Raises UsageProblem, Damaged.
    """
    tiers = stack.tiers(db)
    return not _readable(home) or (always and not is_current(home, wanted_text(db, home, tiers)))


def _readable(home: Home) -> bool:
    """Return whether the gateway could start with gateway.yaml as it is."""
    from tasks.gateway import routes

    try:
        entries = mapping.parse(content.read(home.gateway_config) or "")
        routes.read({entry.name: entry.value for entry in entries}, "cpu")
    except (content.Unreadable, KeyError, TypeError, AttributeError, ValueError):
        return False
    return True


def _of_older_version(home: Home) -> bool:
    """Return whether gateway.yaml was written while each tier was an engine of its own."""
    try:
        return home.gateway_config.read_bytes().startswith(b"tiers:")
    except OSError:
        return False


def remove_old(home: Home) -> None:
    """Delete the configuration of a version whose gateway was LiteLLM, and say so in the worker's log."""
    path = home.root / BEFORE_RELAY
    if path.exists():
        path.unlink(missing_ok=True)
        log.info("old_configuration_removed", path=str(path), replaced_by=str(home.gateway_config))


def queue_refresh(db: Database, home: Home) -> bool:
    """Queue a new configuration, and the gateway's replacement by it, where this version would write another one.

    To be called as the worker starts: an upgrade may have changed what the gateway reads. Returns whether it was
    queued: not for a gateway that is not wanted, and not where the settings are at fault, which its start then tells.
    """
    row, tiers = rows.find(db, gateway.SERVICE), stack.tiers(db)
    if not tiers or row is None or row.desired != "up":
        return False
    try:
        if is_current(home, wanted_text(db, home, tiers)):
            return False
    except MlxqError as problem:
        log.warning("configuration_unknown", cause=problem.message)
        return False
    restart = new("restart", {"service": gateway.SERVICE, "reason": "changed"}, needs=["configure"])
    ledger.enqueue_all(db, [new("configure"), restart], source="watchdog")
    return True
