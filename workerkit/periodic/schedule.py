"""Calculate when a task is due: by a crontab line, or after the last run of any process."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

_CATCH_UP_HEARTBEATS = 4.0
"""Heartbeats within which a missed time of a crontab line still runs. A takeover lasts two."""

_LONGEST_SLEEP = 30.0
"""Seconds after which a changed clock, or a suspended machine, is detected."""

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


def check_crontab_line(expression: str) -> str:
    """Check a crontab line, and return it unchanged.

    Raises:
        ValueError: It does not have five fields, is not valid, or matches no time.
    """
    try:
        if fields := _NICKNAMES.get(expression.strip().lower()):
            raise CronSimError(f"names are not supported, and this one means {fields!r}")
        # cronsim reads a sixth field, of seconds, as the first one. Other libraries expect it at
        # the end, so it is not supported.
        if (number := len(expression.split())) != 5:
            raise CronSimError(f"it has {number} field{'' if number == 1 else 's'}")
        next(CronSim(expression, datetime.now(UTC)))
    except (CronSimError, ValueError, StopIteration) as error:
        raise ValueError(f"{_reason(error)}; {_FIVE_FIELDS}") from error
    return expression


def check_time_zone(name: str) -> str:
    """Check the name of a time zone, and return it unchanged.

    Raises:
        ValueError: The time zone is unknown.
    """
    if name not in available_timezones():
        raise ValueError("unknown time zone; write a name such as 'Europe/Berlin'")
    return name


def due_after(cron: str, zone: ZoneInfo, after: datetime) -> datetime:
    """Return when a crontab line is due next, in UTC, with the rules of Debian's cron(8).

    A line whose minute or hour begins with `*` follows local time. Any other line is due once for
    each time that it names: after the change of clocks if that time is skipped, and at the first
    occurrence if it is repeated.

    Args:
        cron: Five fields.
        zone: The time zone of the fields.
        after: An aware time, also of another time zone.
    """
    # In a repeated hour cronsim also yields times that have passed.
    times = (each.astimezone(UTC) for each in CronSim(cron, after.astimezone(zone)))
    return next(each for each in times if each > after)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a task with a lease.

    Attributes:
        every: Seconds between two runs; None for a crontab line.
        following: Returns the first time of the crontab line after a given time.
        zone: The time zone of the crontab line.
        jitter: The largest random delay of a run in seconds.
        heartbeat: The heartbeat of the connection with the lease, in seconds.
    """

    every: float | None
    following: Callable[[datetime], datetime]
    zone: tzinfo
    jitter: float
    heartbeat: float

    def next(self, last: float, now: datetime) -> datetime:
        """Return when the next run is due; a time in the past means now.

        After times at which no process was running, there is at most one run for the latest of
        them: with `every` always, with a crontab line only if that time was a moment ago.

        Args:
            last: When the last run was due, in seconds since 1970; 0 if there was none.
        """
        seconds = now.timestamp()
        if self.every is not None:
            missed = (seconds - last) // self.every if last else 0
            # The clock of another process may have been ahead.
            due = last + max(missed, 1) * self.every if last else seconds
            return datetime.fromtimestamp(min(due, seconds + self.every), now.tzinfo)
        begin, recent = now, _CATCH_UP_HEARTBEATS * self.heartbeat
        # If the last run is due in the near future, the clock of the other process is ahead.
        # A time in the far future is wrong, and is ignored.
        if 0 < last <= seconds + recent:
            begin = datetime.fromtimestamp(max(last, seconds - recent), now.tzinfo)
        # Timestamps, because aware times of a repeated hour are not ordered.
        next_due = self.following(begin)
        while (later := self.following(next_due)).timestamp() <= seconds:
            next_due = later
        return next_due


async def sleep_until(due: datetime) -> None:
    """Sleep until the system clock shows *due*."""
    left = (due - datetime.now(UTC)).total_seconds()
    while left > 0:
        await asyncio.sleep(min(left, _LONGEST_SLEEP))
        left = (due - datetime.now(UTC)).total_seconds()


def format_utc(moment: datetime) -> str:
    """Return a time in the format of log records."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reason(error: Exception) -> str:
    if isinstance(error, StopIteration):
        return "it matches no time of the next 50 years"
    if isinstance(error, CronSimError):
        text = str(error)
        return f"its {text[4:]} is not valid" if text.startswith("Bad ") else text
    return "it contains a number that is too large"
