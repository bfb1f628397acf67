"""Which engine is loaded next, which one makes room for it, and when an idle one is stopped. Pure.

Times are unix seconds, sizes bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from catalog import units
from state.errors import DoesNotFit

FOREVER_S = -1.0
"""How long an engine stays that is never stopped for being idle; any number below 0 means the same."""
LONGEST_S = 366 * 86_400.0
LONGEST_BACKGROUND_S = 60.0
"""Then a background request waits in line as every other: it comes last, but it is never starved."""
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(-?)((?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h|d))+|[0-9]+(?:\.[0-9]+)?)")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d)?")


@dataclass(frozen=True)
class Resident:
    """An engine that has memory, or is about to have it."""

    name: str
    bytes: int
    pinned: bool = False
    """Whether it is never stopped to make room."""
    answering: bool = False
    """Whether it has a request, or one waits that it was loaded for."""
    leaving: bool = False
    """Whether it is being stopped."""
    starting: bool = False
    used_at: float = 0.0
    stays_until: float = 0.0
    """Before that it is not stopped to make room, as it was loaded a moment ago."""


@dataclass(frozen=True)
class Waiting:
    """A model that is asked for and not loaded."""

    name: str
    bytes: int
    asked_at: float
    background: bool = False


@dataclass(frozen=True)
class Start:
    """There is room: load it."""


@dataclass(frozen=True)
class Evict:
    """Stop these first, the least recently used ones."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Hold:
    """Nothing can be done for it now."""

    reason: str
    """For users, as the end of "It waits "."""
    until: float | None = None
    """When to decide again at the latest; None where the end of another step says it."""


Step = Start | Evict | Hold


def line(waiting: Collection[Waiting], now: float) -> list[Waiting]:
    """Return who is next: models in the order in which they were asked for, those of background requests last.

    A model is in line once, however many requests wait for it, so that turns are fair by model.
    """
    return sorted(waiting, key=lambda entry: (_is_last(entry, now), entry.asked_at, entry.name))


def _is_last(entry: Waiting, now: float) -> bool:
    return entry.background and now - entry.asked_at < LONGEST_BACKGROUND_S


def require_room(subject: str, need: int, residents: Collection[Resident], budget: int) -> None:
    """Raise DoesNotFit, with the sum, where a model would not fit even if every engine was stopped that may be."""
    pinned = [resident for resident in residents if resident.pinned]
    room = budget - sum(resident.bytes for resident in pinned)
    if need <= room:
        return
    beside = f" beside {_names(pinned)}, which stay{'s' if len(pinned) == 1 else ''}" if pinned else ""
    raise DoesNotFit(
        f"{subject} needs {units.memory(need)}, and {units.memory(max(0, room))} of the budget of "
        f"{units.memory(budget)} can be free{beside}.",
        done="Nothing was loaded or stopped.",
        hint="mlxq status",
    )


def decide(
    name: str, waiting: Collection[Waiting], residents: Collection[Resident], *, budget: int, now: float
) -> Step:
    """Return what is to be done so that the model `name`, one of `waiting`, is loaded.

    One that fits beside what is there starts at once, unless room is being made for another, or was made for one
    before it that has not taken it yet. Room is made for the first in line alone. A running answer is never cut: an
    engine that answers is stopped last, and by draining.
    """
    queue = line(waiting, now)
    own = next(entry for entry in queue if entry.name == name)
    free = budget - sum(resident.bytes for resident in residents)
    leaving = [resident for resident in residents if resident.leaving]
    if own.bytes <= _left(free, queue[: queue.index(own)]) and (not leaving or queue[0] is own):
        return Start()
    if queue[0] is not own:
        return Hold(f"behind {queue[0].name}")
    missing = own.bytes - free - sum(resident.bytes for resident in leaving)
    if missing <= 0:
        return Hold(f"until {_names(leaving)} has stopped")
    return _make_room(missing, residents, now)


def _left(free: int, before: Sequence[Waiting]) -> int:
    """Return the bytes that are left when those that come first have taken what they fit in, each in its turn."""
    for entry in before:
        if entry.bytes <= free:
            free -= entry.bytes
    return free


def _make_room(missing: int, residents: Collection[Resident], now: float) -> Step:
    movable = [resident for resident in residents if not (resident.pinned or resident.leaving)]
    ready = [resident for resident in movable if not resident.starting and resident.stays_until <= now]
    chosen = victims(missing, ready)
    if chosen is not None:
        return Evict(tuple(resident.name for resident in chosen))
    staying = [resident for resident in movable if resident not in ready]
    until = [resident.stays_until for resident in staying if not resident.starting]
    return Hold(f"for {_names(staying) or 'memory'}, loaded a moment ago", min(until, default=None))


def victims(missing: int, candidates: Collection[Resident]) -> list[Resident] | None:
    """Return whom to stop for `missing` bytes; None where all together have less.

    Idle ones before those that answer, the least recently used first; none whose memory is not needed.
    """
    chosen: list[Resident] = []
    for resident in sorted(candidates, key=lambda resident: (resident.answering, resident.used_at, resident.name)):
        if sum(entry.bytes for entry in chosen) >= missing:
            break
        chosen.append(resident)
    if sum(entry.bytes for entry in chosen) < missing:
        return None
    for resident in reversed(chosen[:]):
        if sum(entry.bytes for entry in chosen) - resident.bytes >= missing:
            chosen.remove(resident)
    return chosen


def _names(residents: Sequence[Resident]) -> str:
    return units.listed([resident.name for resident in residents])


def idle_s(kept_s: float | None, setting_s: float | None) -> float | None:
    """Return after how many idle seconds an engine is stopped, None for never.

    `kept_s`: what the latest request that said something said; `setting_s`: the setting, None for off.
    """
    if kept_s is None:
        return setting_s
    return None if kept_s < 0 else kept_s


def is_over(resident: Resident, stops_after_s: float | None, now: float) -> bool:
    """Return whether an engine has been idle for as long as it may be."""
    if stops_after_s is None or resident.pinned or resident.answering or resident.leaving or resident.starting:
        return False
    return now - resident.used_at >= stops_after_s


def seconds(value: object) -> float:
    """Return the seconds of a `keep_alive` as Ollama takes it: a number, or a text such as "5m" or "1h30m".

    Below 0 is for ever (https://github.com/ollama/ollama/blob/main/docs/faq.md). Raises ValueError for what is neither.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a duration")  # noqa: TRY004 (a value of the wrong type is a wrong value to its sender)
    number = _text_s(value.strip()) if isinstance(value, str) else float(value)
    if number < 0:
        return FOREVER_S
    if not number <= LONGEST_S:
        raise ValueError("longer than a year")
    return number


def _text_s(text: str) -> float:
    match = _DURATION.fullmatch(text) if len(text) <= 40 else None  # noqa: PLR2004 (far above any duration)
    if match is None:
        raise ValueError("not a duration")
    total = sum(float(number) * _UNITS[unit or "s"] for number, unit in _PART.findall(match[2]))
    return -total if match[1] else total
