"""Acknowledge the deliveries of one channel with as few frames as possible.

A frame and a `send` per message is a quarter of what bare aio-pika spends on it. Acks are
collected over one turn of the event loop; a run of them without a gap needs one frame.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any

_FRAME_END = 0xCE
_ACK = Struct(">BHIHHQBB").pack  # frame type, channel, size, class, method, tag, multiple, end
_METHOD, _SIZE, _BASIC, _ACK_ID, _REJECT_ID, _NACK_ID = 1, 13, 60, 80, 90, 120
_MULTIPLE, _NACK_REQUEUE = 1, 2  # The bits of basic.nack.


class Acks:
    """The unsettled deliveries of one channel incarnation.

    Delivery tags count from 1 (AMQP 0-9-1, basic.deliver). `multiple` acknowledges every
    outstanding tag up to its own, so it may only span tags that are all settled, and its own must
    itself await an ack: RabbitMQ answers an ack of a settled tag with 406 and closes the channel.

    Args:
        channel: Its number.
        write: Sends bytes at once, or buffers them; False once nothing can be sent.
        soon: Calls a function later in, or at the end of, this turn of the event loop.

    Attributes:
        unsent: Told the deliveries whose acks were taken and could not be sent any more.
    """

    __slots__ = ("_channel", "_outstanding", "_pending", "_soon", "_write", "lost", "unsent")

    def __init__(
        self,
        channel: int,
        write: Callable[[bytes], bool],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._channel = channel
        self._write = write
        self._soon = soon
        self._outstanding: dict[int, None] = {}  # In order; not settled on the wire.
        self._pending: dict[int, Any] = {}
        self.lost = False
        self.unsent: Callable[[list[Any]], None] = lambda deliveries: None

    @property
    def first(self) -> int | None:
        """The lowest tag that is not settled; None if there is none."""
        return next(iter(self._outstanding), None)

    def expect(self, tag: int) -> None:
        """A delivery has come, and will have to be settled."""
        self._outstanding[tag] = None

    def ack(self, tag: int, delivery: Any = None) -> bool:
        """Acknowledge one delivery at the end of this turn.

        Args:
            delivery: What `unsent` is told where that is not possible any more; None for nothing.

        Returns:
            False if the channel is lost: nothing is sent, and the broker delivers it again.
        """
        if self.lost:
            return False
        if not self._pending:
            self._soon(self.flush)
        self._pending[tag] = delivery
        return True

    def reject(self, tag: int, *, requeue: bool) -> bool:
        """Reject one delivery now, after the acks that are still to be sent."""
        return self._refuse(tag, _REJECT_ID, requeue)

    def nack(self, tag: int) -> bool:
        """Requeue one delivery as `reject` does, but by basic.nack.

        From RabbitMQ 4.3 on, a quorum queue does not count this as a failed delivery.
        """
        return self._refuse(tag, _NACK_ID, _NACK_REQUEUE)

    def flush(self) -> None:
        """Send what is pending: before the channel is closed or its consumers are cancelled."""
        if self.lost or not self._pending:
            return
        taken, self._pending = self._pending, {}
        pending = sorted(taken)
        for tag in pending:
            del self._outstanding[tag]
        first = self.first
        frames = []
        for position in range(len(pending) - 1, -1, -1):
            if first is None or pending[position] < first:
                # All below is settled with this one.
                frames.append(self._frame(pending[position], multiple=position > 0))
                break
            frames.append(self._frame(pending[position], multiple=False))
        if not self._send(b"".join(frames)):
            self._tell(taken)

    def fence(self) -> None:
        """The channel is gone: send nothing any more."""
        self.lost = True
        taken, self._pending = self._pending, {}
        self._tell(taken)

    def nack_all(self) -> bool:
        """Requeue every delivery that is not settled, by one basic.nack."""
        self.flush()
        if self.lost or not self._outstanding:
            return not self.lost
        last = next(reversed(self._outstanding))
        self._outstanding.clear()
        bits = _NACK_REQUEUE | _MULTIPLE
        return self._send(
            _ACK(_METHOD, self._channel, _SIZE, _BASIC, _NACK_ID, last, bits, _FRAME_END)
        )

    def _refuse(self, tag: int, method: int, bits: int) -> bool:
        self.flush()
        if self.lost:
            return False
        del self._outstanding[tag]
        return self._send(
            _ACK(_METHOD, self._channel, _SIZE, _BASIC, method, tag, bits, _FRAME_END)
        )

    def _tell(self, taken: dict[int, Any]) -> None:
        if deliveries := [each for each in taken.values() if each is not None]:
            self.unsent(deliveries)

    def _frame(self, tag: int, *, multiple: bool) -> bytes:
        return _ACK(_METHOD, self._channel, _SIZE, _BASIC, _ACK_ID, tag, multiple, _FRAME_END)

    def _send(self, frames: bytes) -> bool:
        if not self._write(frames):
            self.fence()
            return False
        return True
