"""Rates and percentiles, from the differences between successive reports."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LENGTH = 60
"""Values of a series."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Counts:
    """What has been counted since the start of a process.

    Attributes:
        done: Deliveries or requests.
        failed: Those of them that failed.
        bounds: Upper bounds of the buckets of durations, in seconds.
        buckets: Cumulative counts of the buckets; one more than bounds.
    """

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

    def add(self, difference: Counts, seconds: float) -> None:
        """Add what was counted within some seconds."""
        self.rates.append(difference.done / seconds)
        self.failures.append(difference.failed / seconds)
        self.p95s.append(percentile(0.95, difference.bounds, difference.buckets))

    @property
    def rate(self) -> float:
        """The last rate."""
        return self.rates[-1] if self.rates else 0.0

    @property
    def p95(self) -> float | None:
        """The last percentile."""
        return self.p95s[-1] if self.p95s else None


class History(Generic[Key]):
    """Series by key, from the counts of several processes.

    Counts of a process that was not there before are no rate: they are those since its start.

    Args:
        most: Keys that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._series: dict[Key, Series] = {}
        self._last: dict[tuple[str, Key], Counts] = {}

    def update(
        self,
        counts: Mapping[tuple[str, Key], Counts],
        seconds: float,
        known: Callable[[str], bool],
    ) -> None:
        """Add one value to each series.

        Args:
            counts: By process and key.
            seconds: Since the previous update.
            known: Returns whether a process is still known. The last counts of one that does not
                answer are kept, so that its next answer makes one difference.
        """
        differences: dict[Key, list[Counts]] = {}
        for (process, key), now in counts.items():
            before = self._last.get((process, key))
            found = differences.setdefault(key, [])
            if before is not None:
                found.append(_difference(before, now))
        self._last = {each: last for each, last in self._last.items() if known(each[0])} | dict(
            counts
        )
        wanted = dict.fromkeys([*differences, *(key for _, key in self._last)])
        self._series = {
            key: self._series.get(key) or Series() for key in list(wanted)[: self._most]
        }
        for key, series in self._series.items():
            series.add(total(differences.get(key, ())), seconds)

    def of(self, key: Key) -> Series:
        """Return the series of a key; empty before the first update."""
        return self._series.get(key) or Series()


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum; of buckets, those with the bounds of the first."""
    done = failed = 0
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()
    for each in counts:
        done += each.done
        failed += each.failed
        if not buckets:
            bounds, buckets = each.bounds, each.buckets
        elif each.bounds == bounds:
            buckets = tuple(map(sum, zip(buckets, each.buckets, strict=True)))
    return Counts(done, failed, bounds, buckets)


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


def _difference(before: Counts, now: Counts) -> Counts:
    """Return what was counted in between. Counts do not fall, unless a report is wrong."""
    done, failed = max(now.done - before.done, 0), max(now.failed - before.failed, 0)
    if now.bounds != before.bounds or len(now.buckets) != len(before.buckets):
        return Counts(done, failed)
    buckets = tuple(
        max(after - earlier, 0) for earlier, after in zip(before.buckets, now.buckets, strict=True)
    )
    return Counts(done, failed, now.bounds, buckets)
