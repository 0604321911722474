"""Rates and percentiles from the counts of processes."""

import pytest

from workerkit.console.history import LENGTH, Counts, History, percentile

BOUNDS = (0.1, 1.0)


def counts(
    time: float, done: int, failed: int = 0, fast: int | None = None, bounds: tuple[float, ...] = ()
) -> Counts:
    """Return counts; with *fast*, so many took less than 0.1 s, and the others less than 1 s."""
    if fast is None:
        return Counts(time, done, failed)
    return Counts(time, done, failed, bounds or BOUNDS, (fast, done, done))


def history(*updates: dict[str, Counts]) -> History[str]:
    """Return the history of one consumer, after updates with the counts by process."""
    found: History[str] = History(10)
    for update in updates:
        found.update({(process, "a"): each for process, each in update.items()}, lambda _: True)
    return found


def test_a_rate_is_what_was_counted_between_two_reports() -> None:
    """Divided by the time that the process itself has measured."""
    found = history({"1": counts(10, 100, 10)}, {"1": counts(12, 110, 12)}).of("a")

    assert list(found.rates) == [5.0]
    assert list(found.failures) == [1.0]


def test_the_first_counts_of_a_process_are_no_rate() -> None:
    """They are those since its start, perhaps a week ago; they do not reduce a rate either."""
    found = history(
        {"1": counts(0, 0)},
        {"1": counts(2, 10), "2": counts(900, 1_000_000)},
        {"1": counts(4, 20), "2": counts(902, 1_000_010)},
    ).of("a")

    assert list(found.rates) == [5.0, 10.0]


def test_counts_that_fall_are_no_rate() -> None:
    """A process that starts again has another id; no other reset makes a negative rate."""
    found = history(
        {"1": counts(0, 100, fast=50)},
        {"1": counts(2, 10, fast=10)},
        {"1": counts(4, 20, fast=10)},
    ).of("a")

    assert list(found.rates) == [5.0]
    assert found.p95 == pytest.approx(0.955)


def test_a_process_that_was_silent_makes_no_spike() -> None:
    """What it has counted meanwhile is divided by all this time."""
    known = {"1", "2"}
    found: History[str] = History(10)
    for time in range(0, 20, 2):
        update = {("1", "a"): counts(time, time * 5)}
        if time in (0, 18):
            update["2", "a"] = counts(time, time * 100)
        found.update(update, known.__contains__)

    assert list(found.of("a").rates) == [*[5.0] * 8, 105.0]


def test_a_process_that_was_forgotten_begins_again() -> None:
    """Its counts are no rate, as those of a new one."""
    found: History[str] = History(10)
    for number, known in enumerate([True, True, False, True, True]):
        update = {("2", "a"): counts(number, number * 10)}
        found.update(update if known else {}, {"2": known}.__getitem__)

    assert found.of("a").rates[-1] == 10.0
    assert max(found.of("a").rates) == 10.0


def test_a_process_that_ends_lowers_the_rate_only() -> None:
    """Its counts are not subtracted."""
    found: History[str] = History(10)
    for time in (0, 2):
        update = {(each, "a"): counts(time, time * 5) for each in "12"}
        found.update(update, lambda _: True)
    found.update({("1", "a"): counts(4, 20)}, lambda process: process == "1")

    assert list(found.of("a").rates) == [10.0, 5.0]


def test_what_a_known_process_counts_for_the_first_time_is_a_rate() -> None:
    """A route is reported from its first request on."""
    found: History[str] = History(10)
    found.update({("1", "a"): counts(0, 0)}, lambda _: True)
    both = {("1", "a"): counts(2, 4), ("1", "b"): counts(2, 6, fast=6)}
    found.update(both, lambda _: True)

    assert found.of("b").rate == 3.0
    assert found.of("b").p95 == pytest.approx(0.095)


def test_percentiles_are_those_of_the_last_interval_and_of_all_processes() -> None:
    """Older values do not count, nor do those of a process with other bounds."""
    found = history(
        {each: counts(0, 1000, fast=0) for each in "123"},
        {
            "1": counts(2, 1010, fast=10),
            "2": counts(2, 1010, fast=10),
            "3": counts(2, 1010, fast=0, bounds=(5.0, 6.0)),
        },
    ).of("a")

    assert found.p95 == pytest.approx(0.095)


def test_without_values_there_is_no_percentile() -> None:
    """The rate is 0."""
    found = history({"1": counts(0, 10, fast=5)}, {"1": counts(2, 10, fast=5)}).of("a")

    assert (list(found.rates), list(found.p95s)) == ([0.0], [None])


def test_a_time_that_stands_still_makes_no_endless_rate() -> None:
    """The clock of another process may be anything."""
    found = history({"1": counts(5, 0)}, {"1": counts(5, 10)}, {"1": counts(-9, 20)}).of("a")

    assert list(found.rates) == [100.0, 100.0]


def test_series_end() -> None:
    """There are 60 values, of a limited number of keys."""
    found: History[str] = History(2)
    for time in range(LENGTH + 20):
        update = {("1", key): counts(time, time) for key in "abc"}
        found.update(update, lambda _: True)

    assert len(found.of("a").rates) == len(found.of("b").p95s) == LENGTH
    assert not found.of("c").rates


def test_series_of_a_key_that_is_gone_are_forgotten() -> None:
    """With the last process that had it."""
    found = history({"1": counts(0, 0)}, {"1": counts(2, 10)})
    found.update({}, lambda _: False)

    assert found.of("a").rate == 0.0
    assert not found.of("a").rates


def test_restarted_series() -> None:
    """The next counts are the first ones again."""
    found = history({"1": counts(0, 0)}, {"1": counts(2, 10)})
    found.restart()
    found.update({("1", "a"): counts(3600, 99_999)}, lambda _: True)
    found.update({("1", "a"): counts(3602, 100_001)}, lambda _: True)

    assert list(found.of("a").rates) == [1.0]


@pytest.mark.parametrize(
    ("fraction", "cumulative", "expected"),
    [
        (0.95, (), None),
        (0.95, (0, 0, 0), None),
        (0.5, (10, 10, 10), 0.05),
        (0.5, (0, 10, 10), 0.55),
        (0.95, (0, 0, 10), 1.0),
        (0.95, (90, 100, 100), 0.55),
        (1.0, (10, 10, 10), 0.1),
    ],
)
def test_percentiles(fraction: float, cumulative: tuple[int, ...], expected: float | None) -> None:
    """By interpolation in the bucket; above the last bound, that bound."""
    assert percentile(fraction, BOUNDS, cumulative) == pytest.approx(expected)
