"""What `workerkit top` shows of a fleet, as lines. No I/O, no clock."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum

from workerkit.cli.terminal import Cell, Column, Lines, table_lines
from workerkit.console.model import ConsumerRow, FleetView, ProcessRow
from workerkit.console.reports import FailureReport

UNLIMITED = 2**12
"""The width and height of what a pipe gets."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK = 8
_MOST_PROBLEMS = 3
_WIDE_NUMBERS = 70
_STYLES = {
    "ready": "green",
    "ended": "green",
    "paused": "cyan",
    "waiting": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "not ready": "red",
}
# The order of importance; unknown states of newer versions come first.
_WORST_FIRST = ("not ready", "waiting", "starting", "stopping", "draining", "paused", "ready")
_DEAD = "bold red"

_CONSUMERS = [
    Column("CONSUMER"),
    Column("KIND", whole=True, wide=100),
    Column("STATE", whole=True),
    Column("BUSY", whole=True, right=True),
    Column("RATE", whole=True, right=True),
    Column("", whole=True, wide=76),
    Column("P95", whole=True, right=True),
    Column("", whole=True, wide=110),
    Column("RETRIED", whole=True, right=True, wide=90),
    Column("WAITING", whole=True, right=True),
    Column("DEAD", whole=True, right=True),
]
_PROCESSES = [
    Column("PROCESS"),
    Column("STATE", whole=True),
    Column("UP", whole=True, right=True),
    Column("BUSY", whole=True, right=True),
    Column("LAG", whole=True, right=True),
    Column("MEMORY", whole=True, right=True),
    Column("VERSION", wide=90),
]
_FAILURES = [
    Column("FAILED", whole=True, right=True),
    Column("CONSUMER"),
    Column("ACTION", whole=True),
    Column("ERROR"),
    Column("PLACE", wide=100),
    Column("TRACE", whole=True, wide=150),
]


class Sort(StrEnum):
    """The order of the consumers."""

    STATE = "state"
    NAME = "name"
    RATE = "rate"
    P95 = "p95"
    WAITING = "waiting"
    DEAD = "dead"

    @property
    def next(self) -> "Sort":
        """The one after it; after the last, the first."""
        every = list(Sort)
        return every[(every.index(self) + 1) % len(every)]


def lines_of(view: FleetView, width: int, height: int, sort: Sort, footer: str = "") -> list[Lines]:
    """Return the screen: the numbers, then consumers, processes and failures as far as they fit.

    Args:
        width: Columns of the terminal.
        height: Rows of the terminal.
        footer: The last line; empty for none.
    """
    top = [_title(view), *_problems(view), *_numbers(view, width)]
    consumers = table_lines(
        _CONSUMERS, [_consumer(each) for each in _sorted(view.consumers, sort)], width
    )
    processes = table_lines(
        _PROCESSES, [_process(each, view.time) for each in view.processes], width
    )
    failures = table_lines(_FAILURES, [_failure(each, view.time) for each in view.failures], width)
    rest = height - len(top) - bool(footer)
    sections = [_with_reasons(consumers, _sorted(view.consumers, sort)), processes, failures]
    names = ("consumers", "processes", "failures")
    for name, section, room in zip(names, sections, _rooms(sections, rest), strict=True):
        top += _cut(section, room, name)
    if footer:
        top = top[: height - 1]
        top += [[]] * (0 if height >= UNLIMITED else height - 1 - len(top))
        top.append([Cell(footer, "dim")])
    return top[:height]


def sparkline(values: Sequence[float | None], width: int = _SPARK) -> str:
    """Return the last *width* values as blocks; one that is unknown is a space.

    The largest value has the highest block, 0 the lowest.
    """
    shown = values[-width:]
    most = max((each for each in shown if each is not None), default=0.0)
    steps = len(_BLOCKS) - 1
    blocks = [
        " " if each is None else _BLOCKS[round(each / most * steps) if most > 0 else 0]
        for each in shown
    ]
    return "".join(blocks).rjust(width)


def count(number: int | None) -> str:
    """Return a number in at most six characters; `-` if it is unknown."""
    if number is None:
        return "-"
    if number < 100_000:
        return str(number)
    for unit in "kMGT":
        number_of_units = number / 1000
        if number_of_units < 999.5 or unit == "T":
            digits = 0 if number_of_units >= 99.95 else 1
            return f"{number_of_units:.{digits}f}{unit}"
        number //= 1000
    raise AssertionError


def rate(number: float) -> str:
    """Return a number per second."""
    if number >= 10_000:
        return f"{count(round(number))}/s"
    return f"{number:.0f}/s" if number >= 100 or number == 0 else f"{number:.1f}/s"


def seconds(number: float | None) -> str:
    """Return a duration with its unit; `-` if it is unknown."""
    if number is None:
        return "-"
    if number == 0:
        return "0 s"
    if number < 0.9995:
        return f"{number * 1000:.0f} ms" if number >= 0.01 else f"{number * 1000:.1f} ms"
    if number < 60:
        return f"{number:.1f} s" if number < 10 else f"{number:.0f} s"
    for size, unit, largest in ((60, "min", 3600), (3600, "h", 86_400)):
        if number < largest:
            return f"{number / size:.0f} {unit}"
    return f"{number / 86_400:.0f} d"


def _title(view: FleetView) -> Lines:
    complete = view.answered >= view.asked
    answered = f"{view.answered} of {view.asked} answered"
    return [
        Cell(view.app, "bold"),
        Cell("  "),
        Cell(answered, "dim" if complete else "yellow"),
        Cell("  "),
        Cell(view.time.strftime("%H:%M:%S %Z"), "dim"),
    ]


def _problems(view: FleetView) -> list[Lines]:
    shown: list[Lines] = [[Cell(each, "yellow")] for each in view.problems[:_MOST_PROBLEMS]]
    if more := len(view.problems) - len(shown):
        shown.append([Cell(f"{more} more problems", "yellow")])
    return shown


def _numbers(view: FleetView, width: int) -> list[Lines]:
    totals = view.totals
    numbers = {
        "handled": count(totals.handled),
        "failed": count(totals.failed),
        "retried": count(totals.retried),
        "dead": count(totals.dead),
        "in flight": count(totals.in_flight),
        "waiting": count(totals.waiting),
        "processes": count(totals.processes),
    }
    columns = [
        Column(each, whole=True, right=True, wide=_WIDE_NUMBERS if each == "retried" else 0)
        for each in numbers
    ]
    table = table_lines(columns, [[Cell(each, "bold") for each in numbers.values()]], width)
    header = [Cell(cell.text, "dim") for cell in table[0]]
    most = min(max(len(totals.rates), _SPARK), max(width - 60, _SPARK))
    rates: Lines = [
        Cell(f"{rate(totals.rate)} "),
        Cell(sparkline(totals.rates, most), "green"),
        Cell("  failures "),
        Cell(sparkline(totals.failures, most), "red"),
        Cell(f"  dead letters {count(totals.letters)}", _DEAD if totals.letters else ""),
    ]
    return [header, table[1], rates]


def _sorted(consumers: Sequence[ConsumerRow], sort: Sort) -> list[ConsumerRow]:
    keys: dict[Sort, Callable[[ConsumerRow], float]] = {
        Sort.STATE: lambda each: _rank(each.state),
        Sort.NAME: lambda each: 0,
        Sort.RATE: lambda each: -each.rate,
        Sort.P95: lambda each: -(each.p95 or 0.0),
        Sort.WAITING: lambda each: -(_sum(queue.ready for queue in each.queues) or 0),
        Sort.DEAD: lambda each: -(_letters(each) or 0),
    }
    return sorted(consumers, key=lambda each: (keys[sort](each), each.name))


def _rank(state: str) -> int:
    if state == "ended":
        state = "ready"
    return _WORST_FIRST.index(state) if state in _WORST_FIRST else -1


def _consumer(row: ConsumerRow) -> list[Cell]:
    paused = f"{row.state}, {row.paused} paused" if row.paused and row.state != "paused" else ""
    limit = "" if row.concurrency is None else f"/{row.concurrency}"
    letters = _letters(row)
    return [
        Cell(row.name, "bold"),
        Cell(row.kind, "dim"),
        Cell(paused or row.state, _STYLES.get(row.state, "red")),
        Cell(f"{row.in_flight}{limit}"),
        Cell(rate(row.rate)),
        Cell(sparkline(row.rates), "green"),
        Cell(seconds(row.p95)),
        Cell(sparkline(row.p95s), "cyan"),
        Cell(count(row.retried), "yellow" if row.retried else ""),
        Cell(count(_sum(each.ready for each in row.queues))),
        Cell(count(letters), _DEAD if letters else ""),
    ]


def _letters(row: ConsumerRow) -> int | None:
    """Return the dead letters in the queues; where these are unknown, those since the start."""
    # Several queues of a consumer may share one for their dead letters.
    queues = {(each.connection, each.vhost, each.dead_letters): each.dead for each in row.queues}
    known = _sum(queues.values())
    return known if known is not None else (row.dead or None)


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [each for each in numbers if each is not None]
    return sum(known) if known else None


def _with_reasons(table: list[Lines], rows: Sequence[ConsumerRow]) -> list[Lines]:
    """Add the reason of a state as a line of its own, which may be long."""
    lines = table[:1]
    for line, row in zip(table[1:], rows, strict=True):
        lines.append(line)
        if row.reason and row.reason != row.state:
            lines.append([Cell("  "), Cell(row.reason, _STYLES.get(row.state, "red"))])
    return lines


def _process(row: ProcessRow, now: datetime) -> list[Cell]:
    number = "" if row.number is None else f" #{row.number}"
    state, style = row.state, _STYLES.get(row.state, "red")
    if not row.responding:
        state, style = f"silent {seconds(row.silent)}", "red"
    return [
        Cell(f"{row.host}:{row.pid}{number}", "bold"),
        Cell(state, style),
        Cell(_age(row.started, now)),
        Cell(count(row.in_flight)),
        Cell(seconds(row.lag)),
        Cell("-" if row.memory is None else f"{row.memory / 2**20:.0f} MiB"),
        Cell(row.version, "dim"),
    ]


def _failure(report: FailureReport, now: datetime) -> list[Cell]:
    text = f"{report.error}: {report.text}" if report.text else report.error
    return [
        Cell(f"{_age(report.time, now)} ago"),
        Cell(report.consumer, "bold"),
        Cell(report.action),
        Cell(text, "red"),
        Cell(report.place),
        Cell(report.trace_id or "", "dim"),
    ]


def _age(since: datetime, now: datetime) -> str:
    # Clocks of machines differ.
    return seconds(max(round((now - since).total_seconds()), 0))


def _rooms(sections: Sequence[list[Lines]], rest: int) -> list[int]:
    """Return the number of lines of each section, with the empty line above it.

    Processes and failures leave half of the room to the consumers, and get what they do not need.
    """
    wanted = [len(each) + 1 if len(each) > 1 else 0 for each in sections]
    consumers, *others = wanted
    first = min(consumers, max(rest - sum(others), rest // 2, 0))
    left = max(rest - first, 0)
    second = min(others[0], max(left - others[1], left // 2))
    return [first, second, min(others[1], left - second)]


def _cut(section: list[Lines], room: int, name: str) -> list[Lines]:
    """Return a section in so many lines; if it is longer, the last one says so."""
    if room < 3 or len(section) < 2:
        return []
    lines = [[], *section]
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], [Cell(f"more {name} do not fit here", "dim")]]
