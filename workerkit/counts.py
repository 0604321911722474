"""Count and measure in plain Python, as it is done for each message; others read it off."""

from bisect import bisect_left
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


class Count:
    """How often something happened, under one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Distribution:
    """The values of something, under one set of labels.

    Attributes:
        bounds: Upper ones of the buckets but the last.
        counts: By bucket; not cumulated.
        total: The sum of the values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> Iterator[int]:
        """For each bucket, how many values are in it or below."""
        return accumulate(self.counts)


class Counter:
    """How often something happened."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.series: dict[Labels, Count] = {}

    def of(self, *labels: str) -> Count:
        """The count of these labels, for those who keep it."""
        if labels not in self.series:
            self.series[labels] = Count()
        return self.series[labels]

    def add(self, *labels: str) -> None:
        """It happened once more."""
        self.of(*labels).value += 1


class Histogram:
    """How large the values of something were.

    Args:
        bounds: Upper ones of the buckets, ascending; one more bucket takes what is above them.
    """

    def __init__(self, metric: Metric, bounds: Sequence[float]) -> None:
        self.metric = metric
        self.bounds = bounds
        self.series: dict[Labels, Distribution] = {}

    def of(self, *labels: str) -> Distribution:
        """The distribution of these labels, for those who keep it."""
        if labels not in self.series:
            self.series[labels] = Distribution(self.bounds)
        return self.series[labels]

    def observe(self, value: float, *labels: str) -> None:
        """Add one value."""
        self.of(*labels).observe(value)
