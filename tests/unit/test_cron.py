"""The times of a `cron` line, compared with a simulation of Debian's cron for each minute."""

import struct
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from secrets import token_hex
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.application import container_of, package_of
from tests.waiting import eventually
from workerkit import DeclarationError, PeriodicTask, Runner
from workerkit.options import InvalidOption, resolve
from workerkit.periodic.consumer import PeriodicOptions
from workerkit.periodic.schedule import due_after

MINUTE = timedelta(minutes=1)
# Noon, in UTC, before a night on which clocks change: by an hour, at midnight, and by half an hour.
NIGHTS = [
    ("Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 7, 12, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 10, 31, 12, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 3, 12, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 2, 17, 12, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 4, 23, 12, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 12, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 12, tzinfo=UTC)),
]
# cronsim goes by hours, and begins a day at 00:00, even where there is no such time. So a line that
# follows the clock on the wall can be due once too often, or too rarely, on such a night: docs.
ODD_NIGHTS = ["Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Cairo"]


def instants(cron: str, zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Return the results of `due_after` up to *end*."""
    while (start := due_after(cron, zone, start)) <= end:
        yield start


def numbers(field: str, low: int, high: int) -> set[int]:
    """Return the values of one field without names."""
    found: set[int] = set()
    for term in field.split(","):
        values, _, step = term.partition("/")
        if values == "*":
            first, last = low, high
        else:
            one, _, other = values.partition("-")
            first, last = int(one), int(other or (high if step else one))
        found.update(range(first, last + 1, int(step or 1)))
    return found


def follows_local_time(cron: str) -> bool:
    """Return whether the minute or the hour begins with `*`."""
    return any(each.startswith("*") for each in cron.split()[:2])


def simulated(cron: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Return when cron(8) of Debian, which checks the clock once a minute, runs a line.

    If the minute or the hour begins with `*`, local time counts. All other jobs run once for each
    local time: those of a skipped hour right after it, and none in a repeated hour.
    """
    limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
    fields = cron.split()
    minutes, hours, days, months, weekdays = (
        numbers(field, *limit) for field, limit in zip(fields, limits, strict=True)
    )
    needs_both_days = fields[2].startswith("*") or fields[4].startswith("*")

    def fits(wall: datetime) -> bool:
        by_day = wall.day in days, bool(weekdays & {wall.isoweekday(), wall.isoweekday() % 7})
        on_day = all(by_day) if needs_both_days else any(by_day)
        return on_day and wall.minute in minutes and wall.hour in hours and wall.month in months

    def wall(at: datetime) -> datetime:
        return at.astimezone(zone).replace(tzinfo=None)

    at = start.replace(second=0, microsecond=0)
    latest = max(wall(at - k * MINUTE) for k in range(180))
    runs: list[datetime] = []
    while (at := at + MINUTE) <= end:
        now = wall(at)
        if follows_local_time(cron):
            due = fits(now)
        else:
            passed = int((now - latest) / MINUTE)
            due = any(fits(latest + k * MINUTE) for k in range(1, passed + 1))
        latest = max(latest, now)
        if due:
            runs.append(at)
    return runs


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    # cronsim reads the step of a range of one value, as in 5-5/2, as that of the value alone.
    span = st.lists(number, min_size=2, max_size=2, unique=True).map(
        lambda pair: f"{min(pair)}-{max(pair)}"
    )
    step = st.tuples(st.one_of(st.just("*"), span), st.integers(1, high)).map(
        lambda pair: f"{pair[0]}/{pair[1]}"
    )
    one = st.one_of(number.map(str), span, step)
    return st.one_of(st.just("*"), one, st.lists(one, min_size=2, max_size=3).map(",".join))


HOURS = st.one_of(field(0, 4), field(0, 23))
LINES = st.one_of(
    st.tuples(field(0, 59), HOURS, st.just("*"), st.just("*"), st.just("*")),
    st.tuples(field(0, 59), HOURS, field(1, 31), st.just("*"), field(0, 7)),
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(cron=LINES, night=st.sampled_from(NIGHTS), since=st.integers(0, 18 * 60))
def test_fp6_cron_is_debians_on_nights_on_which_clocks_change(
    cron: str, night: tuple[str, datetime], since: int
) -> None:
    """From any start, a line is due when cron(8) of Debian runs it."""
    name, noon = night
    zone = ZoneInfo(name)
    assume(name not in ODD_NIGHTS or not follows_local_time(cron))
    start = noon + since * MINUTE
    end = start + timedelta(hours=18)

    assert list(instants(cron, zone, start, end)) == simulated(cron, zone, start, end)


@pytest.mark.parametrize(
    ("cron", "noon", "due"),
    [
        # 02:30 does not exist: once, when the clocks have changed.
        ("30 2 * * *", datetime(2026, 3, 28, 12, tzinfo=UTC), ["29 03:00", "30 02:30"]),
        # 02:30 exists twice: the first one.
        ("30 2 * * *", datetime(2026, 10, 24, 12, tzinfo=UTC), ["25 02:30", "26 02:30"]),
        # A line that follows the clock on the wall does not make up for what is skipped.
        ("*/30 2 * * *", datetime(2026, 3, 28, 12, tzinfo=UTC), ["30 02:00", "30 02:30"]),
        ("30 4 * * *", datetime(2026, 10, 24, 12, tzinfo=UTC), ["25 04:30", "26 04:30"]),
    ],
)
def test_fp6_a_night_in_berlin(cron: str, noon: datetime, due: list[str]) -> None:
    """A daily line is due once on each day, including those on which clocks change."""
    berlin = ZoneInfo("Europe/Berlin")
    found = instants(cron, berlin, noon, noon.replace(2027))

    assert due == [each.astimezone(berlin).strftime("%d %H:%M") for each in islice(found, len(due))]


def test_fp6_a_repeated_hour_does_not_start_a_run() -> None:
    """A process that starts in the second 02:15 of a night does not run what was due at 02:30."""
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 10, 25, 2, 15, tzinfo=berlin, fold=1)

    due = due_after("30 2 * * *", berlin, start)

    assert due == datetime(2026, 10, 26, 2, 30, tzinfo=berlin)


@pytest.mark.parametrize(
    ("cron", "text"),
    [
        ("sometimes", "it has 1 field"),
        ("@hourly", r"names are not supported, and this one means '0 \* \* \* \*'"),
        ("* * * * * *", "it has 6 fields"),
        ("*/10 * * * * *", "for seconds set `every` instead"),
        ("* * * * * * *", "it has 7 fields"),
        ("61 * * * *", "its minute is not valid"),
        ("0 22-2 * * *", "its hour is not valid"),
        ("0 0 15W * *", "its day-of-month is not valid"),
        ("0 0 * 13 *", "its month is not valid"),
        ("0 0 * * fri-mon", "its day-of-week is not valid"),
        ("0 0 * * L5", "its day-of-week is not valid"),
        ("0 0 30 2 *", "its day-of-month is not valid"),
        ("*/0 * * * *", r"its minute is not valid"),
        ("R * * * *", "its minute is not valid"),
        ("9" * 5000 + " * * * *", "a number that is too large"),
    ],
)
async def test_fp6_an_invalid_line_is_found_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cron: str, text: str
) -> None:
    """The error names class, file, line and expression, the reason, and what is valid."""
    name = f"tasks_{token_hex(6)}"
    (tmp_path / f"{name}.py").write_text(
        "from workerkit import PeriodicTask\n"
        "class Line(PeriodicTask):\n"
        f"    cron = {cron!r}\n"
        "    async def handle(self) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runner = Runner(container_of("amqp://127.0.0.1:1"), packages=[name])

    with pytest.raises(DeclarationError, match=text) as caught:
        async with runner.running():
            pass

    fault = str(caught.value)
    assert f"{name}.Line ({name}.py:2): option 'cron' is {cron!r}: " in fault
    assert "write five fields: minute, hour, day of month, month and day of week" in fault


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("0 0 L * *", "2026-11-30"),
        ("0 0 LW * *", "2026-11-30"),
        ("0 0 * * 5L", "2026-12-25"),
        ("0 0 * * fri#2", "2026-12-11"),
        ("0 0 * * 7", "2026-12-06"),
        ("0 0 * jan-mar *", "2027-01-01"),
    ],
)
def test_fp6_a_line_may_contain_more_than_numbers(cron: str, due: str) -> None:
    """Names, the last day or working day of a month, and a weekday of a week of a month."""
    start = datetime(2026, 11, 29, 22, tzinfo=UTC)

    assert due_after(cron, ZoneInfo("UTC"), start) == datetime.fromisoformat(f"{due}T00:00Z")


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=20), st.text("0123456789*/-,L#W ?@", min_size=5, max_size=20)))
def test_fp6_any_text_is_a_schedule_or_an_error(cron: str) -> None:
    """For no text is another error raised than that of an invalid value."""
    task = type("Line", (PeriodicTask,), {"cron": cron})
    try:
        resolved = resolve(PeriodicOptions, task, "line", {})
    except InvalidOption:
        return
    assert resolved.cron is not None
    start = datetime.now(UTC)

    assert due_after(resolved.cron, ZoneInfo("UTC"), start) > start


async def test_fp6_a_line_is_due_at_the_full_minute(tmp_path: Path) -> None:
    """A task runs at the time of its time zone, and not before.

    The time zone is one in which the next full minute is near, so the test does not wait long.
    """
    offset = (57 - datetime.now(UTC).second) % 60
    (tmp_path / "Soon").write_bytes(_zone_file(offset))
    zoneinfo.reset_tzpath([str(tmp_path), *zoneinfo.TZPATH])
    calls: list[datetime] = []

    class Line(PeriodicTask):
        cron = "* * * * *"
        timezone = "Soon"

        async def handle(self) -> None:
            calls.append(datetime.now(UTC))

    began = datetime.now(UTC)
    try:
        container = container_of("amqp://127.0.0.1:1")
        async with Runner(container, packages=[package_of(Line)]).running():
            await eventually(lambda: calls, 75.0)
    finally:
        zoneinfo.reset_tzpath()

    local = timedelta(seconds=offset)
    minute = (calls[0] + local).replace(second=0, microsecond=0)
    assert minute > began + local


def _zone_file(offset: int) -> bytes:
    """Return a time zone *offset* seconds east of Greenwich, in version 2 of RFC 8536."""
    name = b"SOON\0"
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, len(name))
    head = b"TZif2" + bytes(15) + counts
    body = struct.pack(">lBB", offset, 0, 0) + name
    return head + body + head + body + f"\n<SOON>-00:00:{offset:02}\n".encode()
