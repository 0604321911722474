"""The lines of `workerkit top`: whatever processes report, they fit and change no terminal."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.unit.test_safe_text import NASTY, TEXTS
from workerkit.cli.terminal import plain
from workerkit.cli.top_lines import (
    UNLIMITED,
    Sort,
    count,
    lines_of,
    rate,
    seconds,
    sparkline,
)
from workerkit.console.model import ConsumerRow, FleetView, ProcessRow, QueueRow, Totals
from workerkit.console.reports import FailureReport

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def queue(name: str, ready: int | None, dead: int | None, letters: str = "dead") -> QueueRow:
    """A queue with a depth."""
    return QueueRow(
        name=name, connection="default", vhost="/", dead_letters=letters, ready=ready, dead=dead
    )


def consumer(number: int, **fields: Any) -> ConsumerRow:
    """A consumer that is ready, unless other fields are given."""
    given = {
        "name": f"Consumer{number}",
        "kind": "amqp",
        "state": "ready",
        "in_flight": 3,
        "concurrency": 10,
        "rate": 12.34,
        "rates": [0, 1, 2, 4],
        "p95": 0.0123,
        "p95s": [None, 0.1, 0.2],
        "retried": 7,
        "queues": [queue("orders", 120, 3)],
    }
    return ConsumerRow(**{**given, **fields})


def fleet(consumers: int | list[ConsumerRow] = 1, text: str = "", **fields: Any) -> FleetView:
    """A view with a number of consumers; *text* is everywhere where text from outside can be."""
    given: dict[str, Any] = {
        "app": text or "shop",
        "time": NOW,
        "interval": 2.0,
        "asked": 4,
        "answered": 3,
        "problems": [f"process {text} did not answer"],
        "totals": Totals(handled=1234, failed=5, waiting=120, processes=4, rate=12.3, rates=[1, 2]),
        "consumers": [
            consumer(each, **{"name": text, "kind": text, "state": text} if text else {})
            for each in range(consumers)
        ]
        if isinstance(consumers, int)
        else consumers,
        "processes": [
            ProcessRow(id="a", host=text or "box", pid=7, number=1, started=NOW, state="ready"),
            ProcessRow(
                id="b",
                host=text or "box",
                pid=8,
                started=NOW - timedelta(hours=3),
                version=text,
                responding=False,
                silent=12.0,
                memory=50 * 2**20,
                lag=0.002,
            ),
        ],
        "failures": [
            FailureReport(
                time=NOW - timedelta(seconds=90),
                consumer=text or "Consumer0",
                source=text,
                action=text or "retry",
                error=text or "KeyError",
                text=text or "'sku'",
                place=text or "orders.py:12",
                trace_id=text or "4bf92f3577b34da6a3ce929d0e0e4736",
            )
        ],
    }
    return FleetView(**{**given, **fields})


def shown(view: FleetView, width: int = 80, height: int = 24, **more: Any) -> list[str]:
    """Return the lines as text, all of them harmless and on the screen."""
    lines = [plain(each) for each in lines_of(view, width, height, **{"sort": Sort.STATE, **more})]
    assert [each for each in lines if not each.isprintable()] == []
    assert len(lines) <= height
    return lines


def test_the_screen() -> None:
    """It has the numbers, then consumers, processes and failures, and the keys at the end."""
    assert shown(fleet(), footer="q quit") == [
        "shop  3 of 4 answered  12:00:00 UTC",
        "process  did not answer",
        "handled  failed  retried  dead  in flight  waiting  processes",
        "   1234       5        0     0          0      120          4",
        "12.3/s       ▅█  failures           dead letters -",
        "",
        "CONSUMER   STATE  BUSY    RATE              P95  WAITING  DEAD",
        "Consumer0  ready  3/10  12.3/s      ▁▃▅█  12 ms      120     3",
        "",
        "PROCESS   STATE         UP  BUSY     LAG  MEMORY",
        "box:7 #1  ready        0 s     0       -       -",
        "box:8     silent 12 s  3 h     0  2.0 ms  50 MiB",
        "",
        "   FAILED  CONSUMER   ACTION  ERROR",
        "2 min ago  Consumer0  retry   KeyError: 'sku'",
        *[""] * 8,
        "q quit",
    ]


@pytest.mark.parametrize("width", [*range(60, 201, 20), 79, 81])
@pytest.mark.parametrize("consumers", [0, 1, 100])
@pytest.mark.parametrize("height", [5, 24, 50])
def test_tables_fit_at_any_size(width: int, consumers: int, height: int) -> None:
    """The texts of usual lengths are not wider than the terminal."""
    lines = shown(fleet(consumers), width, height, footer="q quit")

    assert [line for line in lines if cell_len(line) > width] == []
    assert lines[-1] == "q quit"
    assert len(lines) == height


def test_a_fleet_that_does_not_fit_says_so() -> None:
    """Consumers get most of the rows, and processes and failures some."""
    lines = shown(fleet(100), 80, 30)

    assert "more consumers do not fit here" in lines
    assert len([line for line in lines if line.startswith("Consumer")]) > 8
    assert [line for line in lines if line.startswith("box:8")]
    assert [line for line in lines if "KeyError" in line]


def test_a_pipe_gets_everything() -> None:
    """Nothing is cut off, and all columns are there."""
    reason = "queue orders: " + "x" * 500
    row = consumer(1, state="waiting", reason=reason)

    lines = shown(fleet([row, *fleet(99).consumers]), UNLIMITED, UNLIMITED)

    assert len([line for line in lines if line.startswith("Consumer")]) == 100
    assert f"  {reason}" in lines
    assert lines[-1].endswith("orders.py:12  4bf92f3577b34da6a3ce929d0e0e4736")


@pytest.mark.parametrize("text", [NASTY, "[bold]x[/bold]", "漢字" * 200, "amqp://u:hunter2@h"])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_fp5_hostile_texts_are_escaped(text: str, width: int) -> None:
    """Names, reasons and errors of processes have no effect on the terminal."""
    lines = shown(fleet(3, text), width, 40)

    assert "hunter2" not in "".join(lines)
    assert "[bold]" not in text or "[bold]" in lines[0]


@given(TEXTS, st.integers(1, 250), st.integers(1, 60))
def test_fp5_any_text_at_any_size(text: str, width: int, height: int) -> None:
    """Nothing that a process reports prevents the screen."""
    shown(fleet(2, text), width, height, footer="q quit")


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.STATE, ["Cb", "Ca", "Cc"]),
        (Sort.NAME, ["Ca", "Cb", "Cc"]),
        (Sort.RATE, ["Cc", "Cb", "Ca"]),
        (Sort.P95, ["Ca", "Cb", "Cc"]),
        (Sort.WAITING, ["Cb", "Ca", "Cc"]),
        (Sort.DEAD, ["Cc", "Ca", "Cb"]),
    ],
)
def test_the_order_of_the_consumers(sort: Sort, order: list[str]) -> None:
    """Each sorts the worst, slowest or fullest first."""
    rows = [
        consumer(1, name="Ca", rate=1, p95=3, queues=[queue("a", 5, 1)]),
        consumer(2, name="Cb", rate=2, p95=2, queues=[queue("b", 9, 0)], state="waiting"),
        consumer(3, name="Cc", rate=3, p95=None, queues=[queue("c", None, 7)]),
    ]

    lines = shown(fleet(rows), sort=sort)

    assert [line[:2] for line in lines if line[:2] in order] == order


def test_every_order_is_reached_by_the_key() -> None:
    """The last one is followed by the first."""
    sorts = [Sort.STATE]
    while (following := sorts[-1].next) != Sort.STATE:
        sorts.append(following)

    assert sorts == list(Sort)


def test_queues_that_share_their_dead_letters_count_once() -> None:
    """Both queues report the depth of the same queue."""
    row = consumer(1, queues=[queue("a", 1, 7), queue("b", 2, 7)])

    line = next(each for each in shown(fleet([row])) if each.startswith("Consumer1"))

    assert line.split()[-2:] == ["3", "7"]


def test_a_consumer_that_is_paused_in_some_processes_says_so() -> None:
    """The number of processes is beside the state."""
    line = next(
        each for each in shown(fleet([consumer(1, paused=2)])) if each.startswith("Consumer1")
    )

    assert "ready, 2 paused" in line


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "        "),
        ([0, 0], "      ▁▁"),
        ([1, None, 8], "     ▂ █"),
        (list(range(20)), "▅▆▆▇▇▇██"),
    ],
)
def test_a_sparkline(values: list[float | None], expected: str) -> None:
    """The last values, the largest with the highest block."""
    assert sparkline(values) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (None, "-"),
        (0, "0"),
        (99_999, "99999"),
        (100_000, "100k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (12_345_678, "12.3M"),
        (10**18, "1000000T"),
    ],
)
def test_a_count(number: int | None, expected: str) -> None:
    """It stays short."""
    assert count(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.0012, "1.2 ms"),
        (0.9994, "999 ms"),
        (1.5, "1.5 s"),
        (59.4, "59 s"),
        (90, "2 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
    ],
)
def test_a_duration(number: float | None, expected: str) -> None:
    """It has a unit that suits it."""
    assert seconds(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0/s"), (12.34, "12.3/s"), (1234.5, "1234/s"), (2e5, "200k/s")]
)
def test_a_rate(number: float, expected: str) -> None:
    """It has one digit after the point where that matters."""
    assert rate(number) == expected
