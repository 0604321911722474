"""Notice what the broker has begun to send and does not go on with."""

from dataclasses import dataclass

from workerkit.amqp.frames import Unfinished

CHECKS = 5


@dataclass(slots=True)
class _Progress:
    """Something unfinished.

    Attributes:
        since: When it had made progress last.
        received: How much of it had come then.
        checks: How often it was looked at since.
    """

    since: float
    received: int
    checks: int = 0


class StallDetector:
    """Watches frames and messages that have come in part.

    A large message may take long on a slow line, so it is not its age that counts but the time in
    which it makes no progress. A process that could not look had no chance to read either: only
    what shows no progress at five looks in a row has stalled.

    Args:
        seconds: Without progress. Look five times within this time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[object, _Progress] = {}

    def check(self, unfinished: list[Unfinished], now: float) -> str:
        """What has stalled, in words; empty where nothing has."""
        before, self._seen = self._seen, {}
        for each in unfinished:
            seen = before.get(each.key)
            if seen is None or each.received - seen.received >= each.min_progress:
                seen = _Progress(now, each.received)
            seen.checks += 1
            self._seen[each.key] = seen
            if seen.checks > CHECKS and now - seen.since >= self._seconds:
                return f"{each.text} made no progress for {now - seen.since:.1f} s"
        return ""
