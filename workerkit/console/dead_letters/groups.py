"""Group dead letters by consumer, error and place, and count them over time, in constant memory."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from workerkit.amqp.dead_letters import Evidence
from workerkit.amqp.message import AMQPMessage
from workerkit.console.dead_letters.model import LetterGroup, LetterGroups
from workerkit.console.dead_letters.rows import Clean, group_of, place_of, short
from workerkit.safe_text import excerpt

MOST_GROUPS = 500
INTERVALS = 24
_LONGEST_REASON = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Group:
    """The dead letters of one group.

    Attributes:
        counts: The number in each interval since 1970.
    """

    consumer: str | None
    error: str | None
    place: str
    reason: str | None = None
    count: int = 0
    first: datetime | None = None
    last: datetime | None = None
    counts: Counter[int] = field(default_factory=Counter)


class Grouping:
    """Groups dead letters one by one.

    The first groups that are found are kept. An interval begins with one second, and is doubled
    whenever the times do not fit into the number of intervals.

    Attributes:
        scanned: The number of messages that were added.
        others: Those that belong to no group that is kept.
    """

    def __init__(self, clean: Clean) -> None:
        self._clean = clean
        self._groups: dict[str, _Group] = {}
        self._seconds = 1
        self._lowest: int | None = None
        self._highest = 0
        self.scanned = 0
        self.others = 0

    def add(self, message: AMQPMessage[Any] | None) -> None:
        """Add a message; None for one that cannot be read."""
        self.scanned += 1
        if message is None:
            self.others += 1
            return
        found = Evidence.of(message)
        place = place_of(found)
        id_ = group_of(found, place)
        if (group := self._groups.get(id_)) is None:
            if len(self._groups) >= MOST_GROUPS:
                self.others += 1
                return
            group = _Group(short(found.consumer), short(found.error), place)
            self._groups[id_] = group
        group.count += 1
        time = found.failed_at
        if time is not None:
            group.counts[self._interval(time)] += 1
            group.first = time if group.first is None else min(group.first, time)
        if time is None or group.last is None or time >= group.last:
            group.last = time or group.last
            group.reason = self._short(found.reason)

    def result(self, count: int) -> LetterGroups:
        """Return the groups; *count* is the number of messages in the queue."""
        start = self._lowest or 0
        groups = [
            LetterGroup(
                id=id_,
                consumer=each.consumer,
                error=each.error,
                place=each.place,
                reason=each.reason and excerpt(self._clean(each.reason), _LONGEST_REASON),
                count=each.count,
                first=each.first,
                last=each.last,
                counts=[each.counts[start + number] for number in range(INTERVALS)],
            )
            for id_, each in self._groups.items()
        ]
        return LetterGroups(
            groups=sorted(groups, key=lambda each: each.count, reverse=True),
            start=None if self._lowest is None else self._time(start),
            interval=float(self._seconds),
            others=self.others,
            scanned=self.scanned,
            count=count,
        )

    def _short(self, reason: str | None) -> str | None:
        """Return a reason that may be kept: a long one is cleaned before it is shortened."""
        if reason is None or len(reason) <= _LONGEST_REASON * 4:
            return reason
        return excerpt(self._clean(reason), _LONGEST_REASON)

    def _interval(self, time: datetime) -> int:
        number = int((time - _EPOCH).total_seconds() // self._seconds)
        lowest = number if self._lowest is None else min(self._lowest, number)
        highest = number if self._lowest is None else max(self._highest, number)
        while highest - lowest >= INTERVALS:
            self._seconds *= 2
            number, lowest, highest = number // 2, lowest // 2, highest // 2
            for group in self._groups.values():
                counts: Counter[int] = Counter()
                for each, count in group.counts.items():
                    counts[each // 2] += count
                group.counts = counts
        self._lowest, self._highest = lowest, highest
        return number

    def _time(self, interval: int) -> datetime | None:
        try:
            return _EPOCH + timedelta(seconds=interval * self._seconds)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
