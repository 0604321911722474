"""Notice what the broker has begun to send and does not go on with."""

from dataclasses import dataclass

from workerkit.amqp.frames import Unfinished

LOOKS = 5


@dataclass(slots=True)
class _Seen:
    """Something unfinished.

    Attributes:
        since: When it had made progress last.
        come: How much of it had come then.
        looks: How often it was looked at since.
    """

    since: float
    come: int
    looks: int = 0


class Stalls:
    """Watches frames and messages that have come in part.

    A large message may take long on a slow line, so it is not its age that counts but the time in
    which it makes no progress. A process that could not look had no chance to read either: only
    what shows no progress at five looks in a row has stalled.

    Args:
        seconds: Without progress. Look five times within this time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[object, _Seen] = {}

    def look(self, unfinished: list[Unfinished], now: float) -> str:
        """What has stalled, in words; empty where nothing has."""
        before, self._seen = self._seen, {}
        for each in unfinished:
            seen = before.get(each.key)
            if seen is None or each.come - seen.come >= each.least:
                seen = _Seen(now, each.come)
            seen.looks += 1
            self._seen[each.key] = seen
            if seen.looks > LOOKS and now - seen.since >= self._seconds:
                return f"{each.text} does not go on for {now - seen.since:.1f} s"
        return ""
