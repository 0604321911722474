"""How long a message that failed is held before it goes back to its queue. Pure."""

_FIRST = 1.0
_CAP = 30.0
_BURST = 0.05


class Pacing:
    """The failures of one queue.

    A message that fails for the first time goes back at once: another process may do better. One
    that was delivered before and fails again is held, and longer with each such failure in a row,
    so that a message nobody can handle does not spin.
    """

    __slots__ = ("_last", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._last = 0.0

    def failed(self, *, redelivered: bool, now: float) -> float:
        """Count a failure; the seconds to hold the message, 0 for not at all.

        The messages of a batch fail at the same time, and that is one failure.

        Args:
            now: Seconds of any clock.
        """
        if not redelivered:
            return 0.0
        if not self.failures or now - self._last > _BURST:
            self.failures += 1
        self._last = now
        return min(_CAP, _FIRST * 2.0 ** min(self.failures - 1, 10))

    def succeeded(self, *, redelivered: bool) -> None:
        """A message that was delivered before has been handled: begin anew."""
        if redelivered:
            self.failures = 0
