"""When a periodic task is due: by a crontab line, or for all processes together by its lease."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

_MADE_UP_WITHIN = 4.0
"""Heartbeats within which a time of a crontab line is made up for: a takeover lasts two."""

_LONGEST_SLEEP = 30.0
"""Seconds after which it is noticed that a clock was set, or that a machine slept."""

_FIVE_FIELDS = (
    "write five fields: minute, hour, day of month, month and day of week, such as '*/5 * * * *'; "
    "for seconds set `every` instead"
)


_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def crontab_line(expression: str) -> str:
    """Return a crontab line as it is.

    Raises:
        ValueError: It does not have five fields, is not valid, or matches no time.
    """
    try:
        if meant := _NICKNAMES.get(expression.strip().lower()):
            raise CronSimError(f"names are not supported, and this one means {meant!r}")
        # cronsim takes a sixth field, of seconds, as the first one. Other libraries expect it at
        # the end, so it is not accepted at all.
        if (number := len(expression.split())) != 5:
            raise CronSimError(f"it has {number} field{'' if number == 1 else 's'}")
        next(CronSim(expression, datetime.now(UTC)))
    except (CronSimError, ValueError, StopIteration) as error:
        raise ValueError(f"{_reason(error)}; {_FIVE_FIELDS}") from error
    return expression


def known_zone(name: str) -> str:
    """Return the name of a time zone as it is.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in available_timezones():
        raise ValueError("there is no time zone of that name; write one such as 'Europe/Berlin'")
    return name


def due_after(cron: str, zone: ZoneInfo, after: datetime) -> datetime:
    """When a line is due next, in UTC, by the rules of Debian's cron(8).

    A line whose minute or hour begins with `*` follows the clock on the wall. Any other is due once
    for each time that it names: after the change of clocks where that time is skipped, and the
    first time where it is repeated.

    Args:
        cron: Five fields.
        zone: The time zone of the fields.
        after: Has a time zone, which may be another one.
    """
    # In a repeated hour cronsim names times that have passed.
    times = (each.astimezone(UTC) for each in CronSim(cron, after.astimezone(zone)))
    return next(each for each in times if each > after)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a task is due.

    Attributes:
        every: Seconds between two runs; None for a crontab line.
        following: Returns the first time of the crontab line after another time.
        zone: Of the crontab line.
        jitter: Seconds that a run may begin later.
        heartbeat: Of the connection with the lease.
    """

    every: float | None
    following: Callable[[datetime], datetime]
    zone: tzinfo
    jitter: float
    heartbeat: float

    def next(self, last: float, now: datetime) -> datetime:
        """Return when the next run is due; a time that has passed means now.

        Of the times at which no process was there, at most the latest is made up for: with `every`
        always, with a crontab line if it passed a moment ago.

        Args:
            last: When the last run was due, in seconds since 1970; 0 if there was none.
        """
        seconds = now.timestamp()
        if self.every is not None:
            missed = (seconds - last) // self.every if last else 0
            # The clock of another process may have been ahead.
            due = last + max(missed, 1) * self.every if last else seconds
            return datetime.fromtimestamp(min(due, seconds + self.every), now.tzinfo)
        begin, recent = now, _MADE_UP_WITHIN * self.heartbeat
        # A clock that is a little ahead has run the next time already; one far ahead is wrong.
        if 0 < last <= seconds + recent:
            begin = datetime.fromtimestamp(max(last, seconds - recent), now.tzinfo)
        # By timestamps: in the hour that a clock is set back, times of day do not compare.
        next_due = self.following(begin)
        while (later := self.following(next_due)).timestamp() <= seconds:
            next_due = later
        return next_due


async def sleep_until(due: datetime) -> None:
    """Return when the wall clock shows a time."""
    left = (due - datetime.now(UTC)).total_seconds()
    while left > 0:
        await asyncio.sleep(min(left, _LONGEST_SLEEP))
        left = (due - datetime.now(UTC)).total_seconds()


def in_utc(moment: datetime) -> str:
    """Return a time as log records have it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reason(error: Exception) -> str:
    if isinstance(error, StopIteration):
        return "it matches no time of the next 50 years"
    if isinstance(error, CronSimError):
        text = str(error)
        return f"its {text[4:]} is not valid" if text.startswith("Bad ") else text
    return "it contains a number that is too large"
