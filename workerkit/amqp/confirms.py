"""A channel in confirm mode: messages out as bytes, confirms and returns in from the tap."""

import asyncio
from itertools import takewhile
from struct import Struct

from workerkit.amqp.connection import Channel, Session
from workerkit.amqp.properties import decode
from workerkit.errors import ConnectionLost

_HEAD = Struct(">BHI").pack
_PUBLISH = b"\x00\x3c\x00\x28\x00\x00"  # class, method, a reserved short
_CONTENT = Struct(">HHQ").pack
_FRAME_END = b"\xce"
_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME_OVERHEAD = 8
_DRAIN_ABOVE = 256 * 1024


class Returned(Exception):
    """The broker gave a mandatory message back."""


class Nacked(Exception):
    """The broker answered with basic.nack."""


class Confirms:
    """A channel in confirm mode and the publishes that wait for theirs."""

    def __init__(self, session: Session, channel: Channel) -> None:
        self.session = session
        self.channel = channel
        self._published = 0
        self._waiting: dict[int, tuple[asyncio.Future[None], str]] = {}
        self._returned: dict[int, str] = {}
        self._largest = session.frame_max - _FRAME_OVERHEAD
        self._loop = asyncio.get_running_loop()
        channel.tap(self)
        channel.lost.add_done_callback(self._on_lost)

    @property
    def lost(self) -> bool:
        """Whether the channel is closed."""
        return self.channel.lost.done()

    @property
    def blocked(self) -> bool:
        """Whether the broker blocks publishers of this connection."""
        return not self.session.protocol.unblocked.is_set()

    async def writable(self) -> None:
        """Wait while the broker blocks publishers, or while the socket takes no more."""
        protocol = self.session.protocol
        if self.blocked:
            await protocol.unblocked.wait()
        if protocol.socket.get_write_buffer_size() > _DRAIN_ABOVE:
            await protocol.drained()

    def publish(
        self, method: bytes, properties: bytes, body: bytes, message_id: str
    ) -> "asyncio.Future[None]":
        """Send a message; the future is done when the broker has confirmed it."""
        number = self.channel.number
        frames = [
            _frame(_METHOD, number, method),
            _frame(_HEADER, number, _CONTENT(60, 0, len(body)) + properties),
        ]
        frames += [
            _frame(_BODY, number, body[start : start + self._largest])
            for start in range(0, len(body), self._largest)
        ]
        # One write: nothing of another sender may come between the frames of a message.
        if self.lost or not self.session.protocol.write(b"".join(frames)):
            raise ConnectionLost("the connection is lost")
        self._published += 1
        confirm: asyncio.Future[None] = self._loop.create_future()
        self._waiting[self._published] = confirm, message_id
        return confirm

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Nothing is consumed on this channel."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Note which publish came back; its confirm, which follows, is positive all the same."""
        message_id = decode(properties).message_id
        for tag, (_, published) in self._waiting.items():
            if published == message_id and tag not in self._returned:
                self._returned[tag] = method[3 : 3 + method[2]].decode(errors="replace")
                return

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Wake the publishes that this confirm is for."""
        tags = list(takewhile(lambda each: each <= tag, self._waiting)) if multiple else [tag]
        for each in tags:
            confirm, _ = self._waiting.pop(each, (None, ""))
            returned = self._returned.pop(each, None)
            if confirm is None or confirm.done():
                continue
            if not accepted:
                confirm.set_exception(Nacked())
            elif returned is not None:
                confirm.set_exception(Returned(returned))
            else:
                confirm.set_result(None)

    def closed(self) -> None:
        """The broker closes the channel; `lost` follows."""

    def _on_lost(self, lost: "asyncio.Future[BaseException | None]") -> None:
        reason = lost.result() or self.session.protocol.reason
        for confirm, _ in self._waiting.values():
            if not confirm.done():
                confirm.set_exception(ConnectionLost(f"lost before the confirm: {reason}"))
        self._waiting.clear()


def publish_method(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    parts = [_PUBLISH]
    for what, text in (("exchange", exchange), ("routing key", routing_key)):
        encoded = text.encode()
        if len(encoded) > 255:
            raise ValueError(f"the {what} is {len(encoded)} bytes long, and AMQP allows 255")
        parts += [bytes((len(encoded),)), encoded]
    return b"".join([*parts, b"\x01" if mandatory else b"\x00"])


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"".join((_HEAD(kind, channel, len(payload)), payload, _FRAME_END))
