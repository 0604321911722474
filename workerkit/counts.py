"""Count and measure in plain Python, as it is done for each message; others read it off."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is counted or measured.

    Attributes:
        name: Without the prefix; with the unit at its end, and `_total` behind that of a counter.
        labels: Names of what tells its series apart; few values each.
        text: What it says, for people.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    text: str


class Counter:
    """How often something happened, by labels."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.values: dict[Labels, int] = defaultdict(int)

    def add(self, *labels: str) -> None:
        """It happened once more."""
        self.values[labels] += 1


class Histogram:
    """How large the values of something were, by labels.

    Args:
        bounds: Upper ones of the buckets, ascending; one more bucket takes what is above them.
    """

    def __init__(self, metric: Metric, bounds: Sequence[float]) -> None:
        self.metric = metric
        self.bounds = bounds
        self.series: dict[Labels, Series] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Add one value."""
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = Series(len(self.bounds) + 1)
        series.counts[bisect_left(self.bounds, value)] += 1
        series.total += value


class Series:
    """The values of one histogram that have the same labels.

    Attributes:
        counts: By bucket; not cumulated.
        total: The sum of the values.
    """

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0

    def cumulated(self) -> Iterator[int]:
        """For each bucket, how many values are in it or below."""
        return accumulate(self.counts)
