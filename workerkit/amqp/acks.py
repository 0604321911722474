"""Acknowledge the deliveries of one channel with as few frames as possible.

One frame and one `send` for each message would take a quarter of the CPU time that bare aio-pika
needs per message. So acks are collected over one turn of the event loop, and consecutive tags are
acknowledged with one frame.
"""

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any

from workerkit.amqp.frames import BASIC_CLASS, FRAME_END, METHOD, MalformedFrame

_ACK = Struct(">BHIHHQBB").pack  # frame type, channel, size, class, method, tag, multiple, end
_SIZE, _ACK_ID, _REJECT_ID, _NACK_ID = 13, 80, 90, 120
_ORDERED = 32
_MULTIPLE, _NACK_REQUEUE = 1, 2  # The bits of basic.nack.


class Acks:
    """The unsettled deliveries of one channel incarnation.

    Delivery tags count from 1 (AMQP 0-9-1, basic.deliver). `multiple` acknowledges every
    outstanding tag up to its own, so it may only span tags that are all settled, and its own must
    itself await an ack: RabbitMQ answers an ack of a settled tag with 406 and closes the channel.

    An ack that was written may still be lost: the broker may have closed the socket before, while a
    handler blocked the event loop. So deliveries are remembered until the broker has received
    their acks for certain: bytes arrived a second later or more, or more deliveries than the
    prefetch allows without the ack. Fewer than twice the prefetch are remembered.

    Args:
        channel: Its number.
        write: Sends bytes at once, or buffers them; False once nothing can be sent.
        soon: Calls a function later in, or at the end of, this turn of the event loop.

    Attributes:
        prefetch: The largest number of unsettled deliveries; with 0 no delivery is remembered.
        max_decoded: The largest body of a delivery in bytes after decompression; None without a
            setting.
        unsent: Called with the deliveries whose acks were accepted here, but could not be sent.
        in_doubt: Called with the deliveries whose acks were sent, but may not have arrived.
    """

    __slots__ = (
        "_channel",
        "_last",
        "_older",
        "_outstanding",
        "_pending",
        "_sent",
        "_sent_count",
        "_soon",
        "_write",
        "in_doubt",
        "lost",
        "max_decoded",
        "prefetch",
        "unsent",
    )

    def __init__(
        self,
        channel: int,
        write: Callable[[bytes], bool],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._channel = channel
        self._write = write
        self._soon = soon
        self._outstanding: dict[int, None] = {}  # In order; not yet settled at the broker.
        self._pending: dict[int, Any] = {}
        self._sent: deque[dict[int, Any]] = deque()
        self._sent_count = 0  # Deliveries in all of them.
        self._older = 0  # How many of them were sent before `on_bytes_received` was called last.
        self._last = 0
        self.lost = False
        self.prefetch = 0
        self.max_decoded: int | None = None
        self.unsent: Callable[[list[Any]], None] = lambda deliveries: None
        self.in_doubt: Callable[[list[Any]], None] = lambda deliveries: None

    @property
    def first(self) -> int | None:
        """The lowest tag that is not settled; None if there is none."""
        return next(iter(self._outstanding), None)

    @property
    def received(self) -> int:
        """The number of deliveries so far."""
        return self._last

    @property
    def unsettled(self) -> int:
        """The number of deliveries that are not settled."""
        return len(self._outstanding)

    def expect(self, tag: int) -> None:
        """Add a delivery that has to be settled.

        Raises:
            MalformedFrame: Its tag is not the next one. RabbitMQ counts without gaps, and an ack
                with `multiple` would settle the deliveries in the gap.
        """
        if tag != self._last + 1:
            raise MalformedFrame(
                f"a delivery on channel {self._channel} with tag {tag} after tag {self._last}"
            )
        self._last = tag
        self._outstanding[tag] = None

    def ack(self, tag: int, delivery: Any = None) -> bool:
        """Acknowledge one delivery at the end of this turn.

        Args:
            delivery: Passed to `unsent` if the ack cannot be sent; None for no call.

        Returns:
            False if the channel is lost: nothing is sent, and the broker redelivers the message.
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
        """Requeue one delivery with basic.nack.

        From RabbitMQ 4.3 on, a quorum queue does not count this as a failed delivery.
        """
        return self._refuse(tag, _NACK_ID, _NACK_REQUEUE)

    def nack_all(self) -> bool:
        """Requeue all deliveries that are not settled, some with each basic.nack.

        A quorum queue requeues more than 32 in any order: Erlang's larger maps have none.
        """
        self.flush()
        if self.lost or not self._outstanding:
            return not self.lost
        tags = list(self._outstanding)
        self._outstanding.clear()
        last = [*tags[_ORDERED - 1 :: _ORDERED], tags[-1]]
        bits = _NACK_REQUEUE | _MULTIPLE
        return self._send(
            b"".join(
                _ACK(METHOD, self._channel, _SIZE, BASIC_CLASS, _NACK_ID, tag, bits, FRAME_END)
                for tag in dict.fromkeys(last)
            )
        )

    def flush(self) -> None:
        """Send what is pending: before the channel is closed or its consumers are cancelled."""
        if self.lost or not self._pending:
            return
        taken, self._pending = self._pending, {}
        frames = self._frames(sorted(taken)) if len(taken) > 1 else self._single_ack(*taken)
        if not self._send(frames):
            self._report_unsent(taken)
            return
        sent = self._sent
        sent.append(taken)
        self._sent_count += len(taken)
        room = self.prefetch - len(self._outstanding)
        while sent and self._sent_count - len(sent[0]) >= room:
            self._sent_count -= len(sent.popleft())
            if self._older:
                self._older -= 1

    def on_bytes_received(self) -> None:
        """Note that bytes arrived, a second or more after the last call.

        Acks that were sent before the last call have arrived. For later acks that is not certain:
        the broker may have sent these bytes before it received them.
        """
        for _ in range(self._older):
            self._sent_count -= len(self._sent.popleft())
        self._older = len(self._sent)

    def finish(self) -> None:
        """Send pending acks, and none after that: workerkit closes the channel."""
        self.flush()
        self.lost = True

    def mark_received(self) -> None:
        """Note that the broker has received all acks: it replied to a later request."""
        self._sent.clear()
        self._sent_count = self._older = 0

    def fence(self) -> None:
        """Stop sending: the channel is lost."""
        self.lost = True
        taken, self._pending = self._pending, {}
        self._report_unsent(taken)
        sent = [each for batch in self._sent for each in batch.values() if each is not None]
        self.mark_received()
        if sent:
            self.in_doubt(sent)

    def _refuse(self, tag: int, method: int, bits: int) -> bool:
        self.flush()
        if self.lost:
            return False
        del self._outstanding[tag]
        return self._send(
            _ACK(METHOD, self._channel, _SIZE, BASIC_CLASS, method, tag, bits, FRAME_END)
        )

    def _report_unsent(self, taken: dict[int, Any]) -> None:
        if deliveries := [each for each in taken.values() if each is not None]:
            self.unsent(deliveries)

    def _frames(self, pending: list[int]) -> bytes:
        for tag in pending:
            del self._outstanding[tag]
        first = self.first
        frames = []
        for position in range(len(pending) - 1, -1, -1):
            if first is None or pending[position] < first:
                # All lower tags are settled with this one.
                frames.append(self._frame(pending[position], multiple=position > 0))
                break
            frames.append(self._frame(pending[position], multiple=False))
        return b"".join(frames)

    def _single_ack(self, tag: int) -> bytes:
        """Do the same as `_frames` for one tag, the most common case with little load."""
        del self._outstanding[tag]
        return _ACK(METHOD, self._channel, _SIZE, BASIC_CLASS, _ACK_ID, tag, False, FRAME_END)

    def _frame(self, tag: int, *, multiple: bool) -> bytes:
        return _ACK(METHOD, self._channel, _SIZE, BASIC_CLASS, _ACK_ID, tag, multiple, FRAME_END)

    def _send(self, frames: bytes) -> bool:
        if not self._write(frames):
            self.fence()
            return False
        return True
