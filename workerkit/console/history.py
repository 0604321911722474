"""Rates and percentiles, from the differences between successive reports."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LENGTH = 60
"""Values of a series."""

_SHORTEST = 0.1
"""Seconds between two reports, at least: a rate of a shorter time would only be noise."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Counts:
    """What has been counted since the start of a process.

    Attributes:
        time: When, in seconds of a clock that does not go back.
        done: Deliveries or requests.
        failed: Those of them that failed.
        bounds: Upper bounds of the buckets of durations, in seconds.
        buckets: Cumulative counts of the buckets; one more than bounds.
    """

    time: float
    done: int
    failed: int
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()


@dataclass(slots=True)
class Series:
    """The last values of one consumer, route, or of everything.

    Attributes:
        rates: Per second, the oldest first.
        failures: Per second, the oldest first.
        p95s: In seconds, the oldest first; None where nothing was done.
    """

    rates: deque[float] = field(default_factory=lambda: deque(maxlen=LENGTH))
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=LENGTH))
    p95s: deque[float | None] = field(default_factory=lambda: deque(maxlen=LENGTH))

    @property
    def rate(self) -> float:
        """The last rate."""
        return self.rates[-1] if self.rates else 0.0

    @property
    def p95(self) -> float | None:
        """The last percentile."""
        return self.p95s[-1] if self.p95s else None


@dataclass(slots=True)
class _Sum:
    """The rates of several processes, and what they have counted by bucket."""

    rate: float = 0.0
    failures: float = 0.0
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()

    def add(self, before: Counts, now: Counts) -> None:
        """Add what a process has counted between two reports.

        Buckets with other bounds than those of the first process are left out.
        """
        seconds = max(now.time - before.time, _SHORTEST)
        self.rate += (now.done - before.done) / seconds
        self.failures += (now.failed - before.failed) / seconds
        earlier = before.buckets if before.done else (0,) * len(now.buckets)
        if not now.bounds or (before.done and now.bounds != before.bounds):
            return
        buckets = tuple(after - each for each, after in zip(earlier, now.buckets, strict=True))
        if not self.buckets:
            self.bounds, self.buckets = now.bounds, buckets
        elif self.bounds == now.bounds:
            self.buckets = tuple(map(sum, zip(self.buckets, buckets, strict=True)))


class History(Generic[Key]):
    """Series by key, from the counts of several processes.

    The first counts of a process are no rate, because they are those since its start; nor are
    counts that are smaller than before. A key that a known process did not have before was 0.

    Args:
        most: Keys that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._series: dict[Key, Series] = {}
        self._last: dict[tuple[str, Key], Counts] = {}

    def update(
        self, counts: Mapping[tuple[str, Key], Counts], known: Callable[[str], bool]
    ) -> None:
        """Add one value to each series.

        Args:
            counts: By process and key, of the processes that have answered.
            known: Returns whether a process is still known. The last counts of one that does not
                answer are kept: its rate is 0 until it answers, and then that of all this time.
        """
        sums: dict[Key, _Sum] = {}
        times = {process: last.time for (process, _), last in self._last.items()}
        for (process, key), now in counts.items():
            before = self._last.get((process, key))
            if before is None and process in times:
                before = Counts(times[process], 0, 0)
            if before is not None and _has_grown(before, now):
                sums.setdefault(key, _Sum()).add(before, now)
        kept = {each: last for each, last in self._last.items() if known(each[0])}
        self._last = kept | dict(counts)
        wanted = list(dict.fromkeys(key for _, key in self._last))[: self._most]
        self._series = {
            key: self._series.get(key) or Series()
            for key in wanted
            if key in self._series or key in sums
        }
        for key, series in self._series.items():
            found = sums.get(key, _Sum())
            series.rates.append(found.rate)
            series.failures.append(found.failures)
            series.p95s.append(percentile(0.95, found.bounds, found.buckets))

    def restart(self) -> None:
        """Forget the series, and the counts that the next ones would be compared with."""
        self._series, self._last = {}, {}

    def of(self, key: Key) -> Series:
        """Return the series of a key; empty before the second update."""
        return self._series.get(key) or Series()


def percentile(fraction: float, bounds: Sequence[float], cumulative: Sequence[int]) -> float | None:
    """Return a percentile by interpolation in its bucket; None without values.

    Values above the last bound count as the last bound, as Prometheus has it.
    """
    if not cumulative or not bounds or cumulative[-1] <= 0:
        return None
    wanted = fraction * cumulative[-1]
    lower, below = 0.0, 0
    for bound, count in zip(bounds, cumulative, strict=False):
        if count >= wanted:
            inside = count - below
            return lower + (bound - lower) * ((wanted - below) / inside if inside else 1.0)
        lower, below = bound, count
    return bounds[-1]


def _has_grown(before: Counts, now: Counts) -> bool:
    """Return whether nothing has fallen; a report with the same id may be wrong."""
    grown: Iterable[bool] = (
        after >= earlier for earlier, after in zip(before.buckets, now.buckets, strict=False)
    )
    return now.done >= before.done and now.failed >= before.failed and all(grown)
