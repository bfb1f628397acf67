"""When a schedule is due, in local time. Pure; what a cron text means is Huey's parser's (tasks/queue.py).

As in Huey, a day must match both the day of the month and the day of the week. A time that a change to summer time
skips is due right after it; one that a change to winter time repeats is due once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

LATE_S = 300.0
"""A run that is later than this was missed: the machine slept or mlxq did not run."""
HORIZON_DAYS = 28 * 366
"""After this, the calendar repeats its weekdays: what is not due until then never is."""
Matches = Callable[[datetime], bool]


@dataclass(frozen=True)
class Cron:
    """When something is due: on the days that match, at these minutes of the day."""

    matches: Matches
    """Looks at the date alone."""
    minutes: tuple[int, ...]
    """Ascending, from 0 to 1439."""

    def latest(self, now: datetime, since: datetime) -> datetime | None:
        """Return the last due time up to `now`, which is not searched for before the day of `since`; local times."""
        for back in range((now.date() - since.date()).days + 1):
            day = now.date() - timedelta(days=back)
            last = 60 * now.hour + now.minute if not back else 24 * 60
            minutes = [minute for minute in self.minutes if minute <= last]
            if minutes and self._on(day):
                return _at(day, minutes[-1])
        return None

    def next(self, now: datetime) -> datetime | None:
        """Return the first due time after `now`, local times; None for what is never due."""
        for ahead in range(HORIZON_DAYS):
            day = now.date() + timedelta(days=ahead)
            first = 60 * now.hour + now.minute if not ahead else -1
            minutes = [minute for minute in self.minutes if minute > first]
            if minutes and self._on(day):
                return _at(day, minutes[0])
        return None

    def _on(self, day: date) -> bool:
        return self.matches(datetime.combine(day, time()))


def _at(day: date, minute: int) -> datetime:
    return datetime.combine(day, time(minute // 60, minute % 60))


def due(latest: float | None, last_due: float, now: float, missed: str) -> bool:
    """Return whether to run: a due time has come since the last one, and was not missed, or is made up for.

    `latest`: the last due time up to `now`, `last_due`: up to where due times were looked at; unix seconds.
    """
    if latest is None or latest <= last_due:
        return False
    return now - latest <= LATE_S or missed == "run"
