"""Detect frames and messages that the broker does not finish."""

from dataclasses import dataclass

from workerkit.amqp.frames import Unfinished

CHECKS = 5


@dataclass(slots=True)
class _Progress:
    """The progress of a frame or a message.

    Attributes:
        since: When it last made progress.
        received: The bytes that had arrived then.
        checks: How often it was checked since.
    """

    since: float
    received: int
    checks: int = 0


class StallDetector:
    """Watches frames and messages that have arrived in part.

    A large message may take long on a slow connection, so the time without progress counts, not the
    age. A process whose event loop was blocked could not read, so five checks in a row without
    progress are needed as well.

    Args:
        seconds: The time without progress. Call `check` five times within it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[object, _Progress] = {}

    def check(self, unfinished: list[Unfinished], now: float) -> str:
        """Return a description of what has stalled; empty if nothing has."""
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
