"""The memory of all messages, and its alarm."""

from collections.abc import Callable

# The alarm ends well below the ceiling, so that it does not toggle with every message.
_CLEAR_AT = 0.9


class Memory:
    """Counts the bytes of messages, and reports when they reach a ceiling.

    Args:
        ceiling: Bytes.
        on_alarm: Called with True at the ceiling, and with False when enough memory is free again.
    """

    __slots__ = ("_full", "_on_alarm", "ceiling", "held")

    def __init__(self, ceiling: int, on_alarm: Callable[[bool], None]) -> None:
        self.ceiling = ceiling
        self.held = 0
        self._full = False
        self._on_alarm = on_alarm

    def hold(self, size: int) -> None:
        """Add *size* bytes."""
        self.held += size
        if self.held >= self.ceiling and not self._full:
            self._full = True
            self._on_alarm(True)

    def release(self, size: int) -> None:
        """Subtract *size* bytes."""
        self.held -= size
        if self._full and self.held < self.ceiling * _CLEAR_AT:
            self._full = False
            self._on_alarm(False)
