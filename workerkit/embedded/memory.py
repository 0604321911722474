"""How much the messages of all queues take, and when that is too much."""

from collections.abc import Callable

# The alarm ends well below the ceiling, or it would flutter with every message.
_CLEAR_AT = 0.9


class Memory:
    """Counts bytes that are held, and tells when they reach the ceiling.

    Args:
        ceiling: Bytes.
        on_alarm: Called with True at the ceiling, with False when enough of it is free again.
    """

    __slots__ = ("_full", "_on_alarm", "ceiling", "held")

    def __init__(self, ceiling: int, on_alarm: Callable[[bool], None]) -> None:
        self.ceiling = ceiling
        self.held = 0
        self._full = False
        self._on_alarm = on_alarm

    def hold(self, size: int) -> None:
        """Count *size* bytes more."""
        self.held += size
        if self.held >= self.ceiling and not self._full:
            self._full = True
            self._on_alarm(True)

    def release(self, size: int) -> None:
        """Count *size* bytes less."""
        self.held -= size
        if self._full and self.held < self.ceiling * _CLEAR_AT:
            self._full = False
            self._on_alarm(False)
