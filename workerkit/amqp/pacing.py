"""How long a message that failed is held before it goes back to its queue. Pure."""

_FIRST = 1.0
_CAP = 30.0
_BURST = 0.05
_UNKNOWN_LIMIT = 15
_RABBITMQ_4_LIMIT = 20


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


def near_limit(delivery_count: int, limit: int | None, *, redelivered: bool) -> bool:
    """Whether a quorum queue might drop the message instead of taking it back once more.

    Args:
        delivery_count: How often it was taken back, from the header `x-delivery-count`.
        limit: The queue's delivery limit; None where unknown (RabbitMQ 4 has 20 by default).
    """
    if limit is None:
        # It may be a classic queue, which hands on whatever a sender wrote into that header.
        return redelivered and delivery_count >= _UNKNOWN_LIMIT
    if limit < 0:  # Switched off.
        return False
    return delivery_count >= min(limit, max(limit - 1, 1))


def at_limit(delivery_count: int, limit: int | None) -> bool:
    """Whether a quorum queue will drop a redelivered message that is not settled this time either.

    `near_limit` keeps a message that merely fails away from here: the process that had this one
    ended, or lost its connection. With a limit of 1 that cannot be told apart.
    """
    if limit is None:
        return delivery_count >= _RABBITMQ_4_LIMIT
    return 1 < limit <= delivery_count
